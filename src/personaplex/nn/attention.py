"""Rotary attention over a ring of keys and values that wraps for ever.

Each slot has its own position (tokens seen since it was opened). A query at position p attends to the keys at
p - context + 1 ... p: exactly `context` of them, however the tokens were grouped into calls.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from personaplex.nn.rope import Rotation, open_rotation


class KV(NamedTuple):
    """The ring of one layer: keys and values [B, H, R, D]; the token at position p lies in row p mod R."""

    k: mx.array
    v: mx.array


class Window(NamedTuple):
    """Where one call's tokens go and what they may see; the same for all layers, so computed once.

    `rotation` turns queries and keys by their positions, `rows` [B, 1, T, 1] are the ring rows to write, `mask`
    [B, 1, T, keys] is what each query sees. With `write_first` the queries read the ring after the write;
    otherwise the ring is too short for that (the write would bury keys that the first query still needs)
    and they read old ring and new tokens side by side.
    """

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
) -> Window:
    """Plan a call of `n_tokens` at positions `start` [B] on a ring of `n_rows`; 0 rows means no ring at all.

    `context` keys are seen, and for ever those before position `pinned` [B]; heads have `head` channels and positions
    the longest `period`.
    """
    query = start[:, None] + mx.arange(n_tokens)
    row = mx.arange(n_rows)
    write_first = n_rows >= context + n_tokens - 1
    if write_first:
        last = query[:, -1:]
        key = last - (last - row) % n_rows
    elif n_rows:
        last = start[:, None] - 1
        key = mx.concatenate([last - (last - row) % n_rows, query], axis=1)
    else:
        key = query
    distance = query[:, :, None] - key[:, None, :]
    # Rows never written reconstruct to negative positions.
    near = distance < context
    if pinned is not None:
        near |= (key < pinned[:, None])[:, None, :]
    mask = (distance >= 0) & near & (key >= 0)[:, None, :]
    kept = query[:, -min(n_tokens, n_rows) :] % n_rows if n_rows else None
    rows = None if kept is None else kept[:, None, :, None]
    return Window(open_rotation(query, head, period), rows, mask[:, None], write_first)


def _write(ring: mx.array, rows: mx.array, new: mx.array) -> mx.array:
    new = new[:, :, -rows.shape[2] :].astype(ring.dtype)
    return mx.put_along_axis(ring, mx.broadcast_to(rows, new.shape), new, axis=2)


class Attention(nn.Module):
    """Multi-head attention with interleaved rotary positions (reference transformer.py); no biases."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def __call__(self, x: mx.array, ring: KV | None, window: Window) -> tuple[mx.array, KV]:
        """x [B, T, dim] -> [B, T, dim], and the ring with these tokens in it (or, without one, their keys, values)."""
        slots, n_tokens, dim = x.shape
        head = dim // self.n_heads
        qkv = self.in_proj(x).reshape(slots, n_tokens, 3 * self.n_heads, head).swapaxes(1, 2)
        # Queries and keys turn by the same angles: one call for both.
        turned = window.rotation(qkv[:, : 2 * self.n_heads])
        q, k, v = turned[:, : self.n_heads], turned[:, self.n_heads :], qkv[:, 2 * self.n_heads :]
        if ring is None or window.rows is None:
            seen = after = KV(k, v)
        else:
            after = KV(_write(ring.k, window.rows, k), _write(ring.v, window.rows, v))
            beside = KV(mx.concatenate([ring.k, k], axis=2), mx.concatenate([ring.v, v], axis=2))
            seen = after if window.write_first else beside
        out = mx.fast.scaled_dot_product_attention(q, seen.k, seen.v, scale=head**-0.5, mask=window.mask)
        return self.out_proj(out.transpose(0, 2, 1, 3).reshape(slots, n_tokens, dim)), after
