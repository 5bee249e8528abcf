"""State as a value: trees of arrays whose first axis is the slot.

A one-slot state can be made anywhere (a prefilled prompt, a saved conversation) and put into a row of a larger one.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

State = TypeVar("State")


def stack(states: list[State]) -> State:
    """Put states side by side: their slots, in order, become the slots of one state."""
    first, *rest = states
    return cast(State, tree_map(lambda *leaves: mx.concatenate(list(leaves), axis=0), first, *rest))


def extract(state: State, slot: int) -> State:
    """The one-slot state of `slot`."""
    return cast(State, tree_map(lambda leaf: leaf[slot : slot + 1], state))


def insert(state: State, slot: int, one: State) -> State:
    """`state` with `slot` replaced by the one-slot state `one`; the other slots are untouched."""

    def put(leaf: mx.array, row: mx.array) -> mx.array:
        return mx.slice_update(leaf, row, mx.array([slot]), axes=(0,))

    return cast(State, tree_map(put, state, one))


def arrays(state: Any) -> list[mx.array]:
    """Every array in a tree, for one `mx.eval`."""
    return list(_flat(state).values())


def parameters(module: nn.Module) -> dict[str, mx.array]:
    """A module's parameters by dotted name."""
    return _flat(module.parameters())


def _flat(tree: Any) -> dict[str, mx.array]:
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def n_bytes(state: Any) -> int:
    """Memory that a state occupies once evaluated."""
    return sum(leaf.nbytes for leaf in arrays(state))
