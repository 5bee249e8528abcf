"""Rotary attention over a ring of keys and values that wraps for ever.

Each slot has its own position (tokens seen since it was opened). A query at position p attends to the keys at
p - context + 1 ... p: exactly `context` of them, however the tokens were grouped into calls. A slot may also pin its
first tokens: they stay in view for ever, at their own positions, in the first rows of the ring, and the ring turns
behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from personaplex.nn.few import as_mask, attend
from personaplex.nn.rope import Rotation, open_rotation


class KV(NamedTuple):
    """The ring of one layer: keys and values [B, H, R, D]. The token at position p lies in row p mod R.

    With n pinned tokens, those lie in rows 0 ... n - 1, and the others in row n + (p - n) mod (R - n).
    """

    k: mx.array
    v: mx.array


class Window(NamedTuple):
    """Where one call's tokens go and what they may see; the same for all layers, so computed once.

    The call is `n_tokens` for each of `slots`. `rotation` turns queries and keys by their positions, `rows`
    [B, 1, T, 1] are the ring rows to write, `mask` [B, 1, T, keys] is what each query sees (in `attend`'s form). With
    `write_first` the queries read the ring after the write; otherwise the ring is too short for that (the write would
    bury keys that the first query still needs) and they read old ring and new tokens side by side.
    """

    slots: int
    n_tokens: int
    rotation: Rotation
    rows: mx.array | None
    mask: mx.array
    write_first: bool


def open_window(
    start: mx.array,
    n_tokens: int,
    n_rows: int,
    context: int,
    head: int,
    period: float,
    pinned: mx.array | None = None,
    dtype: mx.Dtype = mx.float32,
) -> Window:
    """Plan a call of `n_tokens` at positions `start` [B] on a ring of `n_rows`; 0 rows means no ring at all.

    `context` keys are seen, and for ever those before position `pinned` [B], for which a ring must have rows beyond
    `context`; heads have `head` channels of `dtype` and positions the longest `period`.
    """
    query = start[:, None] + mx.arange(n_tokens)
    # How many rows turn is not known here when some are pinned, but they are never fewer than `context`.
    assert pinned is None or n_rows == 0 or n_tokens <= context <= n_rows
    write_first = (n_rows if pinned is None else min(n_rows, context)) >= context + n_tokens - 1
    if write_first:
        key = _positions(query[:, -1:], n_rows, pinned)
    elif n_rows:
        key = mx.concatenate([_positions(start[:, None] - 1, n_rows, pinned), query], axis=1)
    else:
        key = query
    distance = query[:, :, None] - key[:, None, :]
    # Rows never written reconstruct to negative positions.
    near = distance < context
    if pinned is not None:
        near |= (key < pinned[:, None])[:, None, :]
    mask = (distance >= 0) & near & (key >= 0)[:, None, :]
    rows = _rows(query[:, -min(n_tokens, n_rows) :], n_rows, pinned)[:, None, :, None] if n_rows else None
    rotation = open_rotation(query, head, period)
    return Window(len(start), n_tokens, rotation, rows, as_mask(mask[:, None], dtype), write_first)


def _rows(position: mx.array, n_rows: int, pinned: mx.array | None) -> mx.array:
    """The ring's rows for tokens at `position` [B, T]."""
    if pinned is None:
        return position % n_rows
    first = pinned[:, None]
    return mx.where(position < first, position, first + (position - first) % (n_rows - first))


def _positions(last: mx.array, n_rows: int, pinned: mx.array | None) -> mx.array:
    """The positions [B, n_rows] that the ring's rows hold once `last` [B, 1] is written; negative: none yet."""
    row = mx.arange(n_rows)
    if pinned is None:
        return last - (last - row) % n_rows
    first = pinned[:, None]
    turning = last - (last - row) % (n_rows - first)
    return mx.where(row < first, mx.where(row <= last, row, -1), mx.where(turning >= first, turning, -1))


def _write(ring: mx.array, rows: mx.array, new: mx.array) -> mx.array:
    new = new[:, :, -rows.shape[2] :].astype(ring.dtype)
    return mx.put_along_axis(ring, mx.broadcast_to(rows, new.shape), new, axis=2)


def _beside(ring: KV, k: mx.array, v: mx.array) -> KV:
    return KV(mx.concatenate([ring.k, k], axis=2), mx.concatenate([ring.v, v], axis=2))


class Attention(nn.Module):
    """Multi-head attention with interleaved rotary positions (reference transformer.py); no biases."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def __call__(self, x: mx.array, ring: KV | None, window: Window) -> tuple[mx.array, KV]:
        """Normalised rows x [B x T, dim] -> what `out_proj` takes [B x T, dim], and the ring with these tokens in it.

        Without a ring, their keys and values take its place.
        """
        n_rows, dim = x.shape
        qkv = self.in_proj(x).reshape(window.slots, window.n_tokens, 3 * self.n_heads, dim // self.n_heads)
        # Queries and keys turn by the same angles: one call for both.
        qk, v = mx.split(qkv.swapaxes(1, 2), [2 * self.n_heads], axis=1)
        q, k = mx.split(window.rotation(qk), 2, axis=1)
        if ring is None or window.rows is None:
            seen = after = KV(k, v)
        else:
            after = KV(_write(ring.k, window.rows, k), _write(ring.v, window.rows, v))
            seen = after if window.write_first else _beside(ring, k, v)
        out = attend(q, seen.k, seen.v, window.mask)
        return out.swapaxes(1, 2).reshape(n_rows, dim), after
