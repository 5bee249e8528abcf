"""Pinned keys turned on in the rings of all layers, in place (nn/sinks.py): one launch for all slots that are due."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

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


def turn(
    keys: Sequence[mx.array], rings: Sequence[Sequence[mx.array]], due: Sequence[tuple[int, int, int]], period: float
) -> None:
    """Turn each layer's `keys` [B, H, n, D] as they were read, into its ring's; all is done when this returns.

    Of `rings` each is keys and values [B, H, R, D], and packed, their units too; `due` are (slot, rows, positions to
    turn by). **The rings are written in place**, and must be contiguous.
    """
    packed = len(rings[0]) == 4
    _, heads, n_rows, head = rings[0][0].shape
    # MLX knows no write into an input: what is still to be computed of these must be there before, and after.
    into = [[ring[0], ring[2]] if packed else [ring[0]] for ring in rings]
    given = [array for read, ring in zip(keys, into, strict=True) for array in (read, *ring)]
    mx.eval(given)
    where = on_card_now(len(due), *(number for slot in due for number in slot))
    done = _kernel(len(keys), packed)(
        [where, *given],
        [((1,), mx.int32)],
        blocks=WAVES * kernels.multiprocessors(),
        threads=THREADS,
        T=keys[0].dtype,
        D=head,
        H=heads,
        R=n_rows,
        HELD=keys[0].shape[2],
        PERIOD=int(period),
        PACKED=packed,
    )
    mx.eval(done)


@cache
def _kernel(n_layers: int, packed: bool) -> Kernel:
    each = ("read", "ring", "unit") if packed else ("read", "ring")
    names = tuple(f"{name}_{layer}" for layer in range(n_layers) for name in each)
    constants = "T, D, H, R, HELD, PERIOD, PACKED"
    return Kernel("turn_pins", f"turn_pins<{constants}>", ("where", *names), ("done",), ("warp.cuh", "pins.cuh"))
