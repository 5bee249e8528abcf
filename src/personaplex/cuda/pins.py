"""Pinned keys turned on in the rings of all layers, in place (nn/sinks.py): one launch for all slots with a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.sizes import on_card_now

THREADS = 256
WAVES = 4
"""Blocks for each multiprocessor."""


def serves(ring: Sequence[mx.array], period: float) -> bool:
    """Whether `turn` can do rings like this one."""
    return ring[0].shape[3] % 64 == 0 and period == int(period) and ring[0].dtype != mx.float16


class Due(NamedTuple):
    """A prompt's keys as they were read, and the `slots` that are to get them turned: (slot, rows, turned by).

    Of each of the `layers` they are [1, H, n, D] of `dtype`, or packed from it, with their units.
    """

    layers: Sequence[Sequence[mx.array]]
    dtype: mx.Dtype
    slots: list[tuple[int, int, int]]


def turn(due: Sequence[Due], rings: Sequence[Sequence[mx.array]], period: float) -> None:
    """Turn keys as they were read, into the rings of all layers; all is done when this returns. A launch a prompt.

    Of `rings` each is keys and values [B, H, R, D], and packed, their units too. **The rings are written in place**,
    and must be contiguous.
    """
    packed = len(rings[0]) == 4
    into = [[ring[0], ring[2]] if packed else [ring[0]] for ring in rings]
    # MLX knows no write into an input: what is still to be computed of these must be there before, and after.
    mx.eval(into)
    mx.eval([_turn(one, into, period) for one in due])


def _turn(due: Due, into: Sequence[Sequence[mx.array]], period: float) -> list[mx.array]:
    _, heads, n_rows, head = into[0][0].shape
    # The prompt's length is data: one kernel serves every prompt.
    held = due.layers[0][0].shape[2]
    where = on_card_now(len(due.slots), held, *(number for slot in due.slots for number in slot))
    read_packed, packed = len(due.layers[0]) == 2, len(into[0]) == 2
    return _kernel(len(into), read_packed, packed)(
        [where, *(array for read, ring in zip(due.layers, into, strict=True) for array in (*read, *ring))],
        [((1,), mx.int32)],
        blocks=WAVES * kernels.multiprocessors(),
        threads=THREADS,
        T=due.dtype,
        D=head,
        H=heads,
        R=n_rows,
        PERIOD=int(period),
        READ_PACKED=read_packed,
        PACKED=packed,
    )


@cache
def _kernel(n_layers: int, read_packed: bool, packed: bool) -> Kernel:
    each = ("read", *["read_unit"] * read_packed, "ring", *["unit"] * packed)
    names = tuple(f"{name}_{layer}" for layer in range(n_layers) for name in each)
    constants = "T, D, H, R, PERIOD, READ_PACKED, PACKED"
    return Kernel("turn_pins", f"turn_pins<{constants}>", ("where", *names), ("done",), ("warp.cuh", "pins.cuh"))
