"""State as a value: trees of arrays whose first axis is the slot.

A one-slot state can be made anywhere (a prefilled prompt, a saved conversation) and put into a row of a larger one.
A prompt's keys as they were read (`nn/sinks.py`) are the exception: they are no arrays of the slots but held by them,
by one or by many, and are handed on as they are, never copied and never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from personaplex.cuda.kernel import enabled
from personaplex.cuda.slots import Placed, choose, place
from personaplex.nn.attention import KV, PackedKV
from personaplex.nn.sinks import PromptKeys, Sinks, own_copy
from personaplex.nn.transformer import TransformerState

State = TypeVar("State")
InPlace = KV | PackedKV | Sinks
"""What is written in place, and never set back: sinks say how the keys in the rings are turned now."""


def stack(states: list[State]) -> State:
    """Put states side by side: their slots, in order, become the slots of one state."""
    first, *rest = states
    return _each(lambda *leaves: mx.concatenate(list(leaves), axis=0), lambda *some: sum(some, ()), first, *rest)


def extract(state: State, slot: int) -> State:
    """The one-slot state of `slot`."""
    return _each(lambda leaf: leaf[slot : slot + 1], lambda held: held[slot : slot + 1], state)


def copied(state: State, slot: int) -> State:
    """The same, sharing no memory with `state` that is ever written, so that its rings are still written in place."""
    return _each(lambda leaf: mx.take(leaf, mx.array([slot]), axis=0), lambda held: held[slot : slot + 1], state)


def repeated(one: State, slots: int) -> State:
    """The one-slot state `one` in as many slots, evaluated array by array: no more is held meanwhile than stays."""

    def repeat(leaf: mx.array) -> mx.array:
        whole = mx.contiguous(mx.broadcast_to(leaf, (slots, *leaf.shape[1:])))
        mx.eval(whole)
        return whole

    return _each(repeat, lambda held: held * slots, one)


def _each(
    leaves: Callable[..., mx.array], prompts: Callable[..., tuple[PromptKeys, ...]], first: State, *rest: State
) -> State:
    """A state whose arrays are made of others' by `leaves`, and the prompts that its slots hold by `prompts`."""

    def make(*nodes: Any) -> Any:
        if not isinstance(nodes[0], Sinks):
            return leaves(*nodes)
        return Sinks(prompts(*(node.prompts for node in nodes)), leaves(*(node.shift for node in nodes)))

    return cast(State, tree_map(make, first, *rest, is_leaf=lambda node: isinstance(node, Sinks)))


def insert(state: State, slot: int, one: State, *, clear: bool = True, apart: bool = False) -> State:
    """`state` with `slot` replaced by the one-slot state `one`; the other slots are untouched.

    `one` may be trimmed: then the rest of the slot's rings becomes zero, or without `clear` stays what it is. Nothing
    sees it, but what is masked still counts if it is no number. Written in place, and no more than that, when nobody
    holds the old state any more.

    With kernels the rings and shifts are written in place whoever holds them, at once: the old state's are then those
    of the new one, and what is to be made of them must have been evaluated. Its other arrays stay what they were. `one`
    is evaluated first, for it may be made of `state`; if that is evaluated and they are `apart`, with the rest.
    """

    def put(node: mx.array | InPlace, row: Any) -> mx.array | InPlace:
        if isinstance(node, Sinks):
            return node.held(slot, row)._replace(shift=_put(slot, clear, node.shift, row.shift))
        return cast("mx.array | InPlace", tree_map(partial(_put, slot, clear), node, row))

    if enabled():
        return _insert_at_once(state, slot, one, clear, apart)
    return cast(State, tree_map(put, state, one, is_leaf=_is_ring))


def _put(slot: int, clear: bool, leaf: mx.array, row: mx.array) -> mx.array:
    # Another array of the same memory: what is assigned to it is written there, and `leaf` remains what it was.
    whole, mine = mx.stop_gradient(leaf), slice(slot, slot + 1)
    if row.shape[1:] == leaf.shape[1:]:
        whole[mine] = row
        return whole
    held = row.shape[2]
    whole[mine, :, :held] = row
    if clear:
        whole[mine, :, held:] = 0
    return whole


def _leaves(node: Any) -> list[mx.array]:
    """What `arrays` finds in one array or in what is written in place, sooner: there are many."""
    if isinstance(node, Sinks):
        return [node.shift]
    return [node] if isinstance(node, mx.array) else list(node)


def _insert_at_once(state: State, slot: int, one: State, clear: bool, apart: bool) -> State:
    """`insert` by kernels, evaluated."""
    inside: list[Placed] = []
    beside: list[Placed] = []

    def note(node: mx.array | InPlace, row: Any) -> bool:
        where = inside if isinstance(node, InPlace) else beside
        leaves = [pair for pair in zip(_leaves(node), _leaves(row), strict=True) if pair[0].size]
        where += [Placed(leaf, part.astype(leaf.dtype), clear) for leaf, part in leaves]
        return where is beside and bool(leaves)

    replaced = tree_map(note, state, one, is_leaf=_is_ring)
    made = iter(place(slot, inside, beside, apart=apart))

    def choose(node: mx.array | InPlace, new: bool, row: Any) -> mx.array | InPlace:
        if isinstance(node, Sinks):
            return node.held(slot, row)
        return next(made) if new else node

    return cast(State, tree_map(choose, state, replaced, one, is_leaf=_is_ring))


def advance_active(active: mx.array, before: State, after: State) -> State:
    """`after` for the slots that are `active` [B], `before` for the others.

    Rings are taken from `after` as they are, so that they can be written in place: what an idle slot wrote lies where
    its next real token will, in a row that nothing sees before.
    """

    differ: list[tuple[mx.array, mx.array]] = []

    def note(new: mx.array | InPlace, old: mx.array | InPlace) -> bool:
        if isinstance(new, InPlace) or isinstance(old, InPlace) or new is old:
            return False
        differ.append((new, old))
        return True

    changed = tree_map(note, after, before, is_leaf=_is_ring)
    chosen = iter(_chosen(active, [new for new, _ in differ], [old for _, old in differ]))
    return cast(State, tree_map(lambda new, odd: next(chosen) if odd else new, after, changed, is_leaf=_is_ring))


def _chosen(active: mx.array, after: list[mx.array], before: list[mx.array]) -> list[mx.array]:
    if enabled() and after and all(array.size for array in after):
        return choose(active, after, before)
    return [
        mx.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(after, before, strict=True)
    ]


def trim(one: State) -> State:
    """A one-slot state without the ring rows that were never written, sharing no memory with what of `one` is written
    in place.
    """

    def shorten(node: Any) -> Any:
        if isinstance(node, Sinks):
            return node._replace(shift=own_copy(node.shift))
        if not isinstance(node, TransformerState):
            return node
        used = max(1, cast(int, node.position.item()))
        rings = (type(ring)(*(own_copy(rows[:, :, :used]) for rows in ring)) for ring in node.rings)
        return node._replace(rings=tuple(rings))

    return cast(State, tree_map(shorten, one, is_leaf=lambda node: isinstance(node, TransformerState | Sinks)))


def transformers(state: Any) -> list[TransformerState]:
    """The parts of a state that have rings."""
    nodes: list[Any] = []
    tree_map(nodes.append, state, is_leaf=lambda node: isinstance(node, TransformerState))
    return [node for node in nodes if isinstance(node, TransformerState)]


def without_rings(state: Any) -> list[mx.array]:
    """Every array but the rings: what must be kept of a state to set a slot back to it, later."""
    leaves: list[mx.array | InPlace] = []
    tree_map(leaves.append, state, is_leaf=_is_ring)
    return [leaf for leaf in leaves if not isinstance(leaf, InPlace)]


def set_back(state: State, slot: int, kept: list[mx.array]) -> State:
    """`state` with `slot` as it was when `without_rings` was `kept`; the rings must still hold what it saw then."""
    leaves, earlier = without_rings(state), [leaf[slot : slot + 1] for leaf in kept]
    changed = iter(_set_rows(leaves, slot, earlier))
    return cast(
        State, tree_map(lambda leaf: leaf if isinstance(leaf, InPlace) else next(changed), state, is_leaf=_is_ring)
    )


def _set_rows(leaves: list[mx.array], slot: int, rows: list[mx.array]) -> list[mx.array]:
    if enabled() and all(leaf.size for leaf in leaves):
        return place(slot, [], [Placed(leaf, row, True) for leaf, row in zip(leaves, rows, strict=True)])
    return [mx.slice_update(leaf, row, mx.array([slot]), axes=(0,)) for leaf, row in zip(leaves, rows, strict=True)]


def named(state: Any) -> dict[str, mx.array]:
    """Every array of a tree by its place in it; keys of a prompt as attention takes them, as if they were its own."""
    return _flat(tree_map(_spread, state, is_leaf=_is_ring))


def _spread(node: Any) -> Any:
    if isinstance(node, Sinks):
        return tuple(keys for prompt in node.prompts for keys in prompt.unpacked()), node.shift
    return node


def renamed(template: State, values: Mapping[str, mx.array]) -> State:
    """The tree of `template`'s form, of one slot, that `named` took apart."""
    found = iter([values[name] for name in named(template)])

    def gather(node: Any) -> Any:
        if not isinstance(node, Sinks):
            return tree_map(lambda _: next(found), node)
        layers = (tuple((next(found),) for _ in prompt.layers) for prompt in node.prompts)
        prompts = tuple(PromptKeys(keys, prompt.dtype) for keys, prompt in zip(layers, node.prompts, strict=True))
        return Sinks(prompts, next(found))

    return cast(State, tree_map(gather, template, is_leaf=_is_ring))


def arrays(state: Any) -> list[mx.array]:
    """Every array in a tree, for one `mx.eval`. Keys of prompts are not among them: they are evaluated."""
    return [leaf for leaf in _flat(state).values() if isinstance(leaf, mx.array)]


def parameters(module: nn.Module) -> dict[str, mx.array]:
    """A module's parameters by dotted name."""
    return _flat(module.parameters())


def _is_ring(node: Any) -> bool:
    return isinstance(node, InPlace)


def _flat(tree: Any) -> dict[str, mx.array]:
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def n_bytes(state: Any) -> int:
    """Memory that a state occupies once evaluated: what slots share counts once."""
    prompts: list[PromptKeys] = []
    tree_map(lambda leaf: prompts.append(leaf) if isinstance(leaf, PromptKeys) else None, state)
    shared = {id(rows): rows.nbytes for prompt in prompts for layer in prompt.layers for rows in layer}
    return sum({id(leaf): leaf.nbytes for leaf in arrays(state)}.values()) + sum(shared.values())
