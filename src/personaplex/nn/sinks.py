"""Pinned tokens that stay near: what a prompt's keys are turned by when the window has long moved past them.

A model reads what lies as far back as in its training, and no further: a prompt that is pinned at the positions it was
read at is seen for ever, and soon not understood (docs/log.md has the measurement). So the pinned keys follow the
window, as attention sinks do (Xiao et al. 2023), in strides: between two strides nothing is done for it.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from personaplex.cuda import pins as kernels
from personaplex.cuda.kernel import enabled
from personaplex.nn.attention import Ring
from personaplex.nn.rope import open_rotation

STRIDE = 25
"""Tokens that the window moves on before the pinned ones follow: they are never further from it than that."""


class Sinks(NamedTuple):
    """The keys of the first n rows of each layer's ring [B, H, n, D] as they were read, for nothing to add up, and
    `shift` [B]: how many positions further on those in the rings stand."""

    keys: tuple[mx.array, ...]
    shift: mx.array


def open_sinks(rings: tuple[Ring, ...], n_rows: int, dtype: mx.Dtype, *, whole: bool = True) -> Sinks:
    """The first `n_rows` rows of rings in which nothing was turned yet; rows that they lack are zeros.

    Without `whole` only those that they have, which may be the rings' own memory: for who copies them.
    """
    slots, held = rings[0].k.shape[0], min(n_rows, rings[0].k.shape[2])
    lacking = [(0, 0), (0, 0), (0, n_rows - held), (0, 0)]
    keys = tuple(ring.read(dtype)[0][:, :, :held] for ring in rings) if n_rows else ()
    if whole:
        keys = tuple(mx.pad(rows, lacking) for rows in keys)
    return Sinks(keys, mx.zeros((slots,), mx.int32))


def due_shift(position: np.ndarray, pinned: np.ndarray, context: int) -> np.ndarray:
    """How far pinned tokens should stand further on for the query at `position` [B]: a whole number of strides.

    Their last one then lies where the token before the window's oldest would, or less than a stride further back.
    """
    passed = np.maximum(position - context - pinned + 1, 0)
    return np.where(pinned > 0, passed // STRIDE * STRIDE, 0)


def follow(
    rings: tuple[Ring, ...], sinks: Sinks, pinned: np.ndarray, shift: np.ndarray, slots: list[int], period: float
) -> tuple[tuple[Ring, ...], Sinks]:
    """The rings with the `pinned` [B] first keys of some `slots` `shift` [B] positions further on than they were read.

    Others are where they should be: with many slots, one or two are due in most frames, and seldom all of them.
    """
    after = Sinks(sinks.keys, mx.array(shift, mx.int32))
    if enabled() and slots and kernels.serves(rings[0], period):
        kernels.turn(sinks.keys, rings, [(slot, int(pinned[slot]), int(shift[slot])) for slot in slots], period)
        return rings, after
    for slot in slots:
        n, (_, heads, _, head) = int(pinned[slot]), sinks.keys[0].shape
        # One token in each of heads x n rows: they all turn by the same angle.
        turn = open_rotation(mx.array([[int(shift[slot])]], mx.int32), head, period)
        own = (keys[slot : slot + 1, :, :n] for keys in sinks.keys)
        turned = (turn(keys.reshape(1, heads * n, 1, head)).reshape(keys.shape) for keys in own)
        rings = tuple(ring.with_keys(keys, slot) for ring, keys in zip(rings, turned, strict=True))
    return rings, after
