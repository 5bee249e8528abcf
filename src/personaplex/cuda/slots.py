"""Keeping the slots of a state that have no frame as they were, all arrays of the state at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.sizes import on_card


def choose(active: mx.array, after: Sequence[mx.array], before: Sequence[mx.array]) -> list[mx.array]:
    """Of each pair of arrays [B, ...], `after` in the slots that are `active` [B] and `before` in the others.

    One kernel for all, where `mx.where` would be one for each.
    """
    slots = len(active)
    bytes_each = [array.nbytes // slots for array in after]
    pairs = [array for pair in zip(after, before, strict=True) for array in pair]
    threads = 256
    blocks = min(2 * kernels.multiprocessors(), math.ceil(slots * max(bytes_each) / (16 * threads)))
    outputs = [(array.shape, array.dtype) for array in after]
    inputs = [active, on_card(slots, *bytes_each), *pairs]
    return _kernel(len(after))(inputs, outputs, blocks=blocks, threads=threads)


@cache
def _kernel(n: int) -> Kernel:
    pairs = tuple(name for i in range(n) for name in (f"after{i}", f"before{i}"))
    chosen = tuple(f"chosen{i}" for i in range(n))
    return Kernel(f"choose_{n}", "choose", ("active", "size", *pairs), chosen, ("slots.cuh",))
