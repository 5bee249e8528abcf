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

from personaplex.cuda import ring as kernels
from personaplex.cuda.kernel import enabled
from personaplex.nn.few import as_mask, attend
from personaplex.nn.projection import normed
from personaplex.nn.rope import Rotation, open_rotation


class KV(NamedTuple):
    """The ring of one layer: keys and values [B, H, R, D]. The token at position p lies in row p mod R.

    With n pinned tokens, those lie in rows 0 ... n - 1, and the others in row n + (p - n) mod (R - n).
    """

    k: mx.array
    v: mx.array

    def write(self, rows: mx.array, k: mx.array, v: mx.array) -> KV:
        """The ring with new keys and values [B, H, T, D] in its `rows`."""
        return KV(_write(self.k, rows, k), _write(self.v, rows, v))

    def beside(self, k: mx.array, v: mx.array) -> KV:
        """All rows, then the new keys and values."""
        return KV(mx.concatenate([self.k, k], axis=2), mx.concatenate([self.v, v], axis=2))

    def read(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:  # noqa: ARG002 - it is of that type
        """Keys and values as attention takes them."""
        return self.k, self.v

    def as_keys(self) -> tuple[mx.array, ...]:
        """What `unpacked` makes keys of."""
        return (self.k,)

    def with_keys(self, k: mx.array, slot: int) -> KV:
        """The ring with other keys [1, H, n, D] in the first n rows of `slot`."""
        return KV(_replace(self.k, k, slot), self.v)


class PackedKV(NamedTuple):
    """The same ring in 8 bits: `k` and `v` hold -127 ... 127, `k_unit` and `v_unit` [B, H, R, 1] what 1 is worth.

    A unit is float32 and belongs to one row of one head, so that writing a token touches no other. Attention takes
    unpacked copies, one layer's at a time: this is for less memory, not for more speed.
    """

    k: mx.array
    v: mx.array
    k_unit: mx.array
    v_unit: mx.array

    def write(self, rows: mx.array, k: mx.array, v: mx.array) -> PackedKV:
        """The ring with new keys and values [B, H, T, D] in its `rows`."""
        return PackedKV(*(_write(old, rows, new) for old, new in zip(self, _packed(k, v), strict=True)))

    def beside(self, k: mx.array, v: mx.array) -> PackedKV:
        """All rows, then the new keys and values; packed too, so that it does not matter how tokens are grouped."""
        return PackedKV(*(mx.concatenate(list(pair), axis=2) for pair in zip(self, _packed(k, v), strict=True)))

    def read(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Keys and values as attention takes them."""
        return unpacked(self.k, self.k_unit, dtype=dtype), unpacked(self.v, self.v_unit, dtype=dtype)

    def as_keys(self) -> tuple[mx.array, ...]:
        """What `unpacked` makes keys of."""
        return self.k, self.k_unit

    def with_keys(self, k: mx.array, slot: int) -> PackedKV:
        """The ring with other keys [1, H, n, D] in the first n rows of `slot`."""
        whole, unit = _packed_rows(k)
        return self._replace(k=_replace(self.k, whole, slot), k_unit=_replace(self.k_unit, unit, slot))


Ring = KV | PackedKV


def unpacked(rows: mx.array, unit: mx.array | None = None, *, dtype: mx.Dtype) -> mx.array:
    """Rows [B, H, R, D] as a ring has them, packed if there is a `unit`, as attention takes them."""
    return rows if unit is None else (rows * unit).astype(dtype)


def empty_ring(shape: tuple[int, ...], dtype: mx.Dtype, bits: int = 16) -> Ring:
    """A ring [B, H, R, D] that holds nothing: of `dtype`, or with `bits` 8 packed."""
    if bits != 8:
        return KV(mx.zeros(shape, dtype), mx.zeros(shape, dtype))
    packed, unit = (shape, mx.int8), ((*shape[:3], 1), mx.float32)
    return PackedKV(*(mx.zeros(*of) for of in (packed, packed, unit, unit)))


class Window(NamedTuple):
    """Where one call's tokens go and what they may see; the same for all layers, so computed once.

    The call is `n_tokens` for each slot, from positions `start` [B] on. `rotation` turns queries and keys by their
    positions, `rows` [B, 1, T, 1] are the ring rows to write, `mask` [B, 1, T, keys] is what each query sees (in
    `attend`'s form). With `write_first` the queries read the ring after the write; otherwise the ring is too short for
    that (the write would bury keys that the first query still needs) and they read old ring and new tokens side by
    side.
    """

    start: mx.array
    n_tokens: int
    rotation: Rotation
    rows: mx.array | None
    mask: mx.array
    write_first: bool

    def after(self, rows: mx.array) -> mx.array:  # noqa: ARG002 - MLX knows what they wait for
        """The positions [B] behind this call, whose last layer puts out `rows`."""
        return self.start + self.n_tokens


class Decoding(NamedTuple):
    """The same for a call of which kernels make two launches a layer, writing each ring in place.

    The values that came before share memory with those that come after: a state that was stepped is spent, unless it
    was copied.
    """

    start: mx.array
    n_tokens: int
    pinned: mx.array | None
    context: int
    period: float

    def attend(self, qkv: mx.array, ring: Ring) -> mx.array:
        """Projected rows qkv [B x T, 3 dim] -> [B x T, dim]; their keys and values are in the ring then."""
        return kernels.attend(qkv, ring, self.start, self.pinned, self.context, self.period)

    def after(self, rows: mx.array) -> mx.array:
        """The positions [B] behind this call, whose last layer puts out `rows`; not there before the rings are."""
        return kernels.moved_on(self.start, self.n_tokens, rows)


def open_window(
    start: mx.array,
    n_tokens: int,
    n_rows: int,
    context: int,
    head: int,
    period: float,
    pinned: mx.array | None = None,
    dtype: mx.Dtype = mx.float32,
    *,
    trained: bool = False,
) -> Window | Decoding:
    """Plan a call of `n_tokens` at positions `start` [B] on a ring of `n_rows`; 0 rows means no ring at all.

    `context` keys are seen, and for ever those before position `pinned` [B], for which a ring must have rows beyond
    `context`; heads have `head` channels of `dtype` and positions the longest `period`. What is `trained` needs
    gradients, which kernels have not.
    """
    if not trained and enabled() and kernels.served(n_tokens, n_rows, context, head, period, pinned is not None, dtype):
        return Decoding(start, n_tokens, pinned, context, period)
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
    return Window(start, n_tokens, rotation, rows, as_mask(mask[:, None], dtype), write_first)


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


def _replace(rows: mx.array, new: mx.array, slot: int) -> mx.array:
    # Another array of the same memory: what is assigned to it is written there, and `rows` remains what it was. Nothing
    # of it may be read beside, or MLX writes into a copy.
    after = mx.stop_gradient(rows)
    after[slot : slot + 1, :, : new.shape[2]] = new.astype(rows.dtype)
    return after


def _packed(k: mx.array, v: mx.array) -> PackedKV:
    (whole_k, unit_k), (whole_v, unit_v) = _packed_rows(k), _packed_rows(v)
    return PackedKV(whole_k, whole_v, unit_k, unit_v)


def _packed_rows(x: mx.array) -> tuple[mx.array, mx.array]:
    x = x.astype(mx.float32)
    unit = mx.abs(x).max(axis=-1, keepdims=True) / 127
    # A row of zeros has unit 0, and comes back as zeros whatever it is divided by.
    return mx.round(x / mx.where(unit == 0, 1, unit)).astype(mx.int8), unit


class Attention(nn.Module):
    """Multi-head attention with interleaved rotary positions (reference transformer.py); no biases."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def __call__(
        self, norm: nn.Module, x: mx.array, ring: Ring | None, window: Window | Decoding
    ) -> tuple[mx.array, Ring]:
        """Rows x [B x T, dim], to be normalised -> what `out_proj` takes [B x T, dim], and the ring with them in it.

        Without a ring, their keys and values take its place.
        """
        return self.attend(normed(norm, self.in_proj, x), ring, window)

    def attend(self, qkv: mx.array, ring: Ring | None, window: Window | Decoding) -> tuple[mx.array, Ring]:
        """The same from projected rows qkv [B x T, 3 dim] on."""
        if isinstance(window, Decoding):
            assert ring is not None
            return window.attend(qkv, ring), ring
        n_rows, width = qkv.shape
        by_head = qkv.reshape(-1, window.n_tokens, 3 * self.n_heads, width // (3 * self.n_heads)).swapaxes(1, 2)
        # Queries and keys turn by the same angles: one call for both.
        qk, v = mx.split(by_head, [2 * self.n_heads], axis=1)
        q, k = mx.split(window.rotation(qk), 2, axis=1)
        seen: Ring = KV(k, v)
        after = seen
        if ring is not None and window.rows is not None:
            after = ring.write(window.rows, k, v)
            seen = after if window.write_first else ring.beside(k, v)
        out = attend(q, *seen.read(q.dtype), window.mask)
        return out.swapaxes(1, 2).reshape(n_rows, width // 3), after
