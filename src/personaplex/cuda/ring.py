"""One decoding step of rotary attention over rings that are written in place (nn/attention.py)."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Constant, Kernel

_FORM = "D, N, H, R, CONTEXT, PERIOD, PINS, SPLITS, FEWEST, ROWS, THREADS"
_SOURCES = ("warp.cuh", "ring.cuh")
_RING = ("qkv", "position", "pinned", "k", "v")
ATTEND_RING = Kernel("attend_over_ring", f"attend_ring<{_FORM}>", _RING, ("out",), _SOURCES)
ATTEND_PACKED = Kernel(
    "attend_over_packed_ring", f"attend_packed<{_FORM}>", (*_RING, "k_unit", "v_unit"), ("out",), _SOURCES
)
COMBINE = Kernel(
    "combine_parts",
    "combine<D, N, H, R, CONTEXT, PINS, SPLITS, FEWEST>",
    ("parts", "position", "pinned"),
    ("out",),
    _SOURCES,
)
MOVED_ON = Kernel("moved_on_position", "moved_on<B, N>", ("position", "rows"), ("after",), _SOURCES)


class Tuning(NamedTuple):
    """How one attention is shared out: blocks of `threads`, each lane with `rows` of keys and of values in flight.

    A slot's rows are split among enough blocks that `waves` of them are made for each multiprocessor, of no fewer than
    `fewest` rows each. None of it changes what a slot gets while the number of slots stays the same.
    """

    threads: int = 128
    rows: int = 4
    waves: float = 4
    fewest: int = 32
    splits: int | None = None


DEFAULT = Tuning()


def served(n_tokens: int, n_rows: int, context: int, head: int, period: float, pins: bool, dtype: mx.Dtype) -> bool:
    """Whether `attend` can take a call of `n_tokens` per slot: one or two, on rings whose rows are read whole."""
    # Of two tokens the second is written where the first one's oldest key lay, unless there is a row more.
    room = n_rows >= context if n_tokens == 1 else n_tokens == 2 and not pins and n_rows > context
    return room and head in (8, 16, 32, 64, 128) and period == int(period) and dtype in (mx.float32, mx.bfloat16)


def attend(
    qkv: mx.array,
    ring: tuple[mx.array, ...],
    position: mx.array,
    pinned: mx.array | None,
    context: int,
    period: float,
    tuning: Tuning | None = None,
) -> mx.array:
    """The next tokens of each slot, qkv [B x T, 3 x H x D] as projected -> [B x T, H x D]; they are now in the ring.

    `ring` is k, v [B, H, R, D], and for int8 also their units [B, H, R, 1]; `position` [B] int32 is that of the first
    of the T tokens, and the first `pinned` [B] int32 tokens are always seen. **The ring is written in place**, only
    where these tokens belong: whoever still holds it, holds the new one. It must be contiguous.
    """
    tuning = tuning or DEFAULT
    slots, heads, n_rows, head = ring[0].shape
    n_tokens = qkv.shape[0] // slots
    splits = tuning.splits or _splits(slots * heads, context, tuning)
    form: dict[str, Constant] = {"D": head, "N": n_tokens, "H": heads, "R": n_rows, "CONTEXT": context}
    form |= {"PINS": pinned is not None, "SPLITS": splits, "FEWEST": tuning.fewest}
    where = [position, position if pinned is None else pinned]
    whole = ((qkv.shape[0], heads * head), qkv.dtype)
    (found,) = (ATTEND_RING if len(ring) == 2 else ATTEND_PACKED)(
        [qkv, *where, *ring],
        [whole if splits == 1 else ((slots, heads, splits, n_tokens, head + 2), mx.float32)],
        blocks=slots * heads * splits,
        threads=tuning.threads,
        PERIOD=int(period),
        ROWS=tuning.rows,
        THREADS=tuning.threads,
        **form,
    )
    if splits == 1:
        return found
    (out,) = COMBINE([found, *where], [whole], blocks=slots * heads * n_tokens, threads=max(head, 32), **form)
    return out


def _splits(pairs: int, context: int, tuning: Tuning) -> int:
    """Shares of each slot's head: enough to fill the card, and no more than have rows to read."""
    wanted = -(-int(tuning.waves * kernels.multiprocessors()) // pairs)
    return max(1, min(wanted, -(-context // tuning.fewest), 64))


def moved_on(position: mx.array, n_tokens: int, rows: mx.array) -> mx.array:
    """position [B] + `n_tokens`, not before `rows` are there: they come from the attention of every layer.

    MLX knows no write into an input. What is computed from this is ordered behind those writes.
    """
    slots = position.shape[0]
    (after,) = MOVED_ON(
        [position, rows], [((slots,), mx.int32)], blocks=1, threads=min(1024, -(-slots // 32) * 32), B=slots, N=n_tokens
    )
    return after
