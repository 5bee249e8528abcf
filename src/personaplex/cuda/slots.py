"""What is done to slots of a state, to all its arrays at once: keeping those that have no frame as they were, and
putting a one-slot state into one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.sizes import on_card, on_card_now

_SOURCES = ("warp.cuh", "slots.cuh")

MOST_POINTERS = 480
"""Arrays that a launch is given: a kernel's parameters are no more than 4 KB."""

PLACE_THREADS = 256
WAVES = 8
"""Blocks for each multiprocessor, at most."""

LOADS = 4
"""Pieces of 16 bytes that a thread copies, before an array has more shares."""


class Placed(NamedTuple):
    """An array [B, ...] and the `row` [1, ...] that one of its slots becomes.

    The row may be shorter in its third axis; then the rest of the slot becomes zero if it is to be cleared.
    """

    array: mx.array
    row: mx.array
    clear: bool

    def sizes(self) -> tuple[int, int, int, int]:
        """Groups of bytes that lie together in both, bytes of a group in the array and in the row, and `clear`."""
        array, row = self.array, self.row
        whole = array.shape[1:] == row.shape[1:]
        assert whole or (array.shape[1], array.shape[3:]) == (row.shape[1], row.shape[3:]), (array.shape, row.shape)
        assert array.dtype == row.dtype, (array.dtype, row.dtype)
        groups = 1 if whole else array.shape[1]
        return groups, array.nbytes // len(array) // groups, row.nbytes // groups, self.clear

    def n_bytes(self) -> int:
        """Bytes of the slot that change."""
        return self.array.nbytes // len(self.array) if self.clear else self.row.nbytes


def place(slot: int, inside: Sequence[Placed], beside: Sequence[Placed], *, apart: bool = False) -> list[mx.array]:
    """Put rows into `slot` of arrays: of those `inside` in their own memory, of those `beside` into new arrays.

    Returns the new arrays, and all is done by then. Whoever holds an array of `inside`, which must be contiguous, holds
    what it became: what else is made of the old one must have been evaluated. One launch for each 240 arrays of those
    inside, for each 160 of those beside; one evaluation if no row is made of an array, all of which are evaluated: then
    they are `apart`.
    """
    if not apart:
        # MLX knows no write into an input: what a row is still to be computed from may be another of these arrays.
        mx.eval([part for each in (*inside, *beside) for part in (each.array, each.row)])
    done, made = [], []
    for some in _launches(inside, MOST_POINTERS // 2):
        shares = _shares(each.n_bytes() for each in some)
        done += _launch(_inside(len(some)), slot, some, [((1,), mx.int32)], shares)
    for some in _launches(beside, MOST_POINTERS // 3):
        outputs = [(each.array.shape, each.array.dtype) for each in some]
        made += _launch(_beside(len(some)), slot, some, outputs, _shares(each.array.nbytes for each in some))
    mx.eval(done, made)
    return made


def _launches(placed: Sequence[Placed], most: int) -> Iterator[Sequence[Placed]]:
    for first in range(0, len(placed), most):
        yield placed[first : first + most]


def _shares(n_bytes: Iterable[int]) -> int:
    """Into how many shares each array is split, for blocks to take."""
    return math.ceil(max(n_bytes) / (16 * LOADS * PLACE_THREADS))


def _launch(
    kernel: Kernel, slot: int, placed: Sequence[Placed], outputs: list[tuple[tuple[int, ...], mx.Dtype]], shares: int
) -> list[mx.array]:
    slots = len(placed[0].array)
    sizes = on_card_now(slot, slots, shares, *(size for each in placed for size in each.sizes()))
    blocks = min(len(placed) * shares, WAVES * kernels.multiprocessors())
    inputs = [sizes, *(part for each in placed for part in (each.array, each.row))]
    return kernel(inputs, outputs, blocks=blocks, threads=PLACE_THREADS)


@cache
def _inside(n: int) -> Kernel:
    return Kernel(f"place_inside_{n}", "place<true>", ("size", *_pairs(n)), ("done",), _SOURCES)


@cache
def _beside(n: int) -> Kernel:
    made = tuple(f"made{i}" for i in range(n))
    return Kernel(f"place_beside_{n}", "place<false>", ("size", *_pairs(n)), made, _SOURCES)


def _pairs(n: int) -> tuple[str, ...]:
    return tuple(name for i in range(n) for name in (f"array{i}", f"row{i}"))


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
    return Kernel(f"choose_{n}", "choose", ("active", "size", *pairs), chosen, _SOURCES)
