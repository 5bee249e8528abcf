"""Pinned tokens that stay near: what a prompt's keys are turned by when the window has long moved past them.

A model reads what lies as far back as in its training, and no further: a prompt that is pinned at the positions it was
read at is seen for ever, and soon not understood (docs/log.md has the measurement). So the pinned keys follow the
window, as attention sinks do (Xiao et al. 2023), in strides: between two strides nothing is done for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from personaplex.cuda import pins as kernels
from personaplex.cuda.kernel import enabled
from personaplex.nn.attention import Ring, unpacked
from personaplex.nn.rope import open_rotation

STRIDE = 25
"""Tokens that the window moves on before the pinned ones follow: they are never further from it than that."""


@dataclass(frozen=True, eq=False)
class PromptKeys:
    """A prompt's keys as they were read, which nothing writes to: slots with the same prompt hold the same arrays.

    Of each of the `layers` they are [1, H, n, D], or as a packed ring has them, with what 1 is worth [1, H, n, 1];
    `dtype` is what they were packed from. They are evaluated. To a tree of arrays this is a leaf that is none.
    """

    layers: tuple[tuple[mx.array, ...], ...]
    dtype: mx.Dtype

    @property
    def n_rows(self) -> int:
        """How many tokens have keys here: those that are pinned, and maybe some behind them."""
        return self.layers[0][0].shape[2]

    def unpacked(self) -> tuple[mx.array, ...]:
        """Of each layer the keys [1, H, n, D]."""
        return tuple(unpacked(*rows, dtype=self.dtype) for rows in self.layers)


class Sinks(NamedTuple):
    """The `prompts` of B slots, whose axis is the tuple's (none at all where nothing is ever pinned), and `shift` [B]:
    how many positions further on their keys in the rings stand than they were read.
    """

    prompts: tuple[PromptKeys, ...]
    shift: mx.array

    def held(self, slot: int, one: Sinks) -> Sinks:
        """The same, with the prompt that `one` slot holds in `slot`."""
        return self._replace(prompts=(*self.prompts[:slot], *one.prompts, *self.prompts[slot + 1 :]))


def open_sinks(rings: tuple[Ring, ...], n_rows: int, dtype: mx.Dtype, *, shared: bool = False) -> Sinks:
    """One slot's, of the first `n_rows` rows (at least 1) of rings [1, ...] in which nothing was turned yet.

    A copy, or where they are `shared` the rings' own arrays, all their rows: for rings that are evaluated, and never
    written again.
    """
    layers = tuple(ring.as_keys() for ring in rings)
    if not shared:
        layers = tuple(tuple(own_copy(rows[:, :, :n_rows]) for rows in layer) for layer in layers)
        mx.eval(layers)
    return Sinks((PromptKeys(layers, dtype),), mx.zeros((1,), mx.int32))


def sinks_form(rings: tuple[Ring, ...], n_rows: int, dtype: mx.Dtype) -> Sinks:
    """The form of one slot's sinks with the longest prompt, as files have it: shapes and types, never evaluated."""
    _, heads, _, head = rings[0].k.shape
    layers = tuple((mx.zeros((1, heads, n_rows, head), dtype),) for _ in rings) if n_rows else ()
    return Sinks((PromptKeys(layers, dtype),) if n_rows else (), mx.zeros((1,), mx.int32))


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
    after = Sinks(sinks.prompts, mx.array(shift, mx.int32))
    if enabled() and slots and kernels.serves(rings[0], period):
        kernels.turn(_by_prompt(sinks, pinned, shift, slots), rings, period)
        return rings, after
    for slot in slots:
        n, prompt = int(pinned[slot]), sinks.prompts[slot]
        _, heads, _, head = prompt.layers[0][0].shape
        # One token in each of heads x n rows: they all turn by the same angle.
        turn = open_rotation(mx.array([[int(shift[slot])]], mx.int32), head, period)
        own = (keys[:, :, :n] for keys in prompt.unpacked())
        turned = (turn(keys.reshape(1, heads * n, 1, head)).reshape(keys.shape) for keys in own)
        rings = tuple(ring.with_keys(keys, slot) for ring, keys in zip(rings, turned, strict=True))
    return rings, after


def _by_prompt(sinks: Sinks, pinned: np.ndarray, shift: np.ndarray, slots: list[int]) -> list[kernels.Due]:
    """Slots that have the same arrays, side by side."""
    found: dict[int, kernels.Due] = {}
    for slot in slots:
        prompt = sinks.prompts[slot]
        due = found.setdefault(id(prompt.layers[0][0]), kernels.Due(prompt.layers, prompt.dtype, []))
        due.slots.append((slot, int(pinned[slot]), int(shift[slot])))
    return list(found.values())


def own_copy(row: mx.array) -> mx.array:
    """A one-slot array again, contiguous and in memory of its own: as kernels need what they write to, and a slice may
    not be.
    """
    return mx.take(row, mx.array([0]), axis=0)
