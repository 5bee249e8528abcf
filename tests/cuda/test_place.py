"""Putting a one-slot state into a slot, in place and in few launches."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from personaplex.cuda import kernel as kernels
from personaplex.cuda import slots
from personaplex.cuda.kernel import Kernel
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Sampling
from personaplex.nn.attention import KV, PackedKV
from personaplex.nn.sinks import PromptKeys, Sinks, open_sinks
from personaplex.nn.state import arrays, extract, insert, set_back, trim, without_rings
from personaplex.nn.transformer import TransformerState
from personaplex.runtime.device import Device
from personaplex.runtime.limits import Limits
from personaplex.units import FRAME_SAMPLES
from tests.cuda.emulator import emulate, fewer
from tests.small import small_model

SLOTS = 3
DTYPES = (mx.bfloat16, mx.float16, mx.float32, mx.int32, mx.uint32, mx.int8, mx.bool_)
HEADS = {"whole pieces": 16, "words": 3, "bytes": 1}
"""Channels of a head: with 3 a row of four bytes is no whole 16, with 1 that of a short type is no word."""


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "launch", emulate)
    fewer(monkeypatch, "personaplex.cuda.slots.PLACE_THREADS", 32)
    fewer(monkeypatch, "personaplex.cuda.slots.WAVES", 3)


def filled(shape: tuple[int, ...], dtype: mx.Dtype, seed: int) -> mx.array:
    """Numbers of any type, of which none is zero where there are more than two."""
    numbers = np.random.default_rng(seed).integers(1, 100, shape)
    return mx.array(numbers > 50 if dtype == mx.bool_ else numbers).astype(dtype)


def ring(dtype: mx.Dtype, slots: int, n_rows: int, head: int, seed: int) -> KV:
    return KV(filled((slots, 2, n_rows, head), dtype, seed), filled((slots, 2, n_rows, head), dtype, seed + 1))


def state_of(dtype: mx.Dtype, slots: int, n_rows: int, head: int, seed: int) -> dict[str, object]:
    """Every kind of array that states have: rings, packed ones, sinks, what is set back, and some that are empty."""
    packed = [filled((slots, 2, n_rows, head), mx.int8, seed + i) for i in (2, 3)]
    units = [filled((slots, 2, n_rows, 1), mx.float32, seed + i) for i in (4, 5)]
    made = {
        "rings": (ring(dtype, slots, n_rows, head, seed), PackedKV(*packed, *units)),
        "sinks": Sinks(
            tuple(PromptKeys(((filled((1, 2, 3, head), dtype, seed + 6),),), dtype) for _ in range(slots)),
            filled((slots,), mx.int32, seed + 7),
        ),
        "tail": [filled((slots, 5, head), dtype, seed + 8), mx.zeros((slots, 0, head), dtype)],
        "active": filled((slots,), mx.bool_, seed + 9) if seed else mx.zeros((slots,), mx.bool_),
        "one each": filled((slots,), dtype, seed + 10),
    }
    mx.eval(made)
    return made


def bits(tree: object) -> list[np.ndarray]:
    """Copies of all arrays, as the bytes of each slot."""
    return [np.array(leaf.view(mx.uint8)).reshape(len(leaf), -1) for leaf in arrays(tree) if leaf.size]


def stock(state: object, slot: int, one: object, clear: bool) -> object:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "launch", kernels.on_device)
        return insert(state, slot, one, clear=clear)


@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize("held", [9, 4])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_those_of_the_stock_operations(dtype: mx.Dtype, head: int, held: int, clear: bool) -> None:
    """Bit for bit, in every slot and of every kind of array, with all rows and with fewer."""
    state, one = state_of(dtype, SLOTS, 9, head, 0), state_of(dtype, 1, held, head, 20)
    expected, before, given = bits(stock(state, 1, one, clear)), bits(state), bits(one)
    found = insert(state, 1, one, clear=clear)
    for mine, theirs, old in zip(bits(found), expected, before, strict=True):
        assert np.array_equal(mine, theirs)
        assert np.array_equal(mine[[0, 2]], old[[0, 2]])
    assert all(np.array_equal(now, then) for now, then in zip(bits(one), given, strict=True))
    assert all(np.any(now != old) for now, old in zip(bits(found), before, strict=True) if now.size > 2 * SLOTS)


@pytest.mark.parametrize("slot", range(SLOTS))
def test_every_slot_in_turn(slot: int) -> None:
    """Its number is data: one kernel serves all."""
    state, one = state_of(mx.bfloat16, SLOTS, 9, 16, 0), state_of(mx.bfloat16, 1, 4, 16, 20)
    expected = bits(stock(state, slot, one, True))
    assert all(np.array_equal(*pair) for pair in zip(bits(insert(state, slot, one)), expected, strict=True))


def test_rings_are_written_in_their_own_memory_and_the_rest_is_not() -> None:
    """A mark for setting back holds the rest, and may not change. The prompt is the very one that came."""
    state, one = state_of(mx.float32, SLOTS, 9, 16, 0), state_of(mx.float32, 1, 4, 16, 20)
    mark, before = without_rings(state), bits(without_rings(state))
    after = insert(state, 1, one, clear=False)
    for old, new in zip(
        arrays((state["rings"], state["sinks"])), arrays((after["rings"], after["sinks"])), strict=True
    ):
        assert new is old
    assert all(np.array_equal(now, then) for now, then in zip(bits(mark), before, strict=True))
    assert not np.array_equal(np.array(mark[0]), np.array(without_rings(after)[0]))
    (first, _, third), (came,) = state["sinks"].prompts, one["sinks"].prompts  # type: ignore[attr-defined]
    assert [*map(id, after["sinks"].prompts)] == [*map(id, (first, came, third))]  # type: ignore[attr-defined]


def test_a_part_that_is_still_to_be_computed_of_the_old_state_is_of_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a launch behind the one that changes what it is computed from."""
    monkeypatch.setattr(slots, "MOST_POINTERS", 3)
    rings = ring(mx.float32, SLOTS, 9, 16, 0)
    expected = np.array(rings.k[0])
    # Slot 0's keys become slot 1's, and its values what slot 1's keys were.
    old = np.array(rings.k[1])
    insert(rings, 1, KV(rings.k[0:1] * 1, rings.k[1:2] * 1))
    assert np.array_equal(rings.k[1], expected) and np.array_equal(rings.v[1], old)


def test_rows_may_be_views_that_begin_anywhere() -> None:
    """A slice of a larger array is no whole word into it."""
    state, held = {"odd": filled((SLOTS, 16), mx.int8, 0)}, filled((5, 16), mx.int8, 1).reshape(-1)
    row = held[3:19].reshape(1, 16)
    found = insert(state, 2, {"odd": row})
    assert np.array_equal(found["odd"][2], held[3:19]) and np.array_equal(found["odd"][:2], state["odd"][:2])


def test_many_arrays_take_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_POINTERS", 6)
    launched = Counter[str]()

    def counted(kernel: Kernel, *rest: object) -> list[mx.array]:
        launched[kernel.name] += 1
        return emulate(kernel, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "launch", counted)
    state, one = state_of(mx.float32, SLOTS, 9, 3, 0), state_of(mx.float32, 1, 4, 3, 20)
    expected = bits(stock(state, 1, one, True))
    found = insert(state, 1, one)
    assert all(np.array_equal(*pair) for pair in zip(bits(found), expected, strict=True))
    # Seven arrays inside, three beside.
    assert launched == {"place_inside_3": 2, "place_inside_1": 1, "place_beside_2": 1, "place_beside_1": 1}


@pytest.mark.parametrize(("apart", "evaluations"), [(True, 1), (False, 2)])
def test_what_is_apart_waits_once(apart: bool, evaluations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slot becomes may still be drawn while the rest is prepared, if it is made of nothing that is written."""
    state, one = state_of(mx.float32, SLOTS, 9, 3, 0), state_of(mx.float32, 1, 4, 3, 20)
    one["one each"] = one["one each"] + 1  # type: ignore[operator]
    counted, launched = mx.eval, Counter[str]()

    def launch(
        kernel: Kernel, _: object, outputs: list[tuple[tuple[int, ...], mx.Dtype]], *__: object
    ) -> list[mx.array]:
        launched[kernel.name] += 1
        return [mx.zeros(*of) for of in outputs]

    def evaluate(*trees: object) -> None:
        launched["evaluations"] += 1
        counted(*trees)

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(mx, "eval", evaluate)
    insert(state, 1, one, apart=apart)
    assert launched == {"place_inside_7": 1, "place_beside_3": 1, "evaluations": evaluations}


def test_a_slot_is_set_back_as_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    state, later = state_of(mx.float32, SLOTS, 9, 3, 0), state_of(mx.float32, SLOTS, 9, 3, 20)
    state["tail"], later["tail"] = state["tail"][:1], later["tail"][:1]  # type: ignore[index]
    kept, now = without_rings(state), bits(later)
    found = set_back(later, 1, kept)
    assert all(np.array_equal(one, other) for one, other in zip(bits(later), now, strict=True))
    monkeypatch.setattr(kernels, "launch", kernels.on_device)
    expected = set_back(later, 1, kept)
    assert all(np.array_equal(*pair) for pair in zip(bits(found), bits(expected), strict=True))


def test_what_was_captured_outlives_its_slot() -> None:
    """A copy, whatever the slot holds next; but the prompt's keys, which nothing writes to, are the same."""
    rings = ring(mx.float32, 1, 9, 3, 0)
    whole = (
        TransformerState((rings,), mx.array([7])),
        open_sinks((rings,), 2, mx.float32)._replace(shift=mx.array([5])),
    )
    prompt = whole[1].prompts[0]
    mx.eval(whole)
    captured = trim(extract(whole, 0))
    mx.eval(captured)
    before = bits(captured)
    other = ring(mx.float32, 1, 4, 3, 9)
    after = insert(whole, 0, (TransformerState((other,), mx.array([4])), open_sinks((other,), 2, mx.float32)))
    assert all(np.array_equal(now, then) for now, then in zip(bits(captured), before, strict=True))
    assert after[1].shift.tolist() == [0] and captured[1].shift.tolist() == [5]
    assert captured[1].prompts[0] is prompt is not after[1].prompts[0]


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_a_conversation_begins_in_a_running_device(kv_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without kernels, twice from one prefix, which stays what it was; a neighbour's mark and state too."""
    made, launched, choice = small_model(), Counter[str](), Sampling(text_top_k=0, audio_top_k=0)
    limits = Limits(pinned_frames=30, rewind_seconds=0.32, kv_bits=kv_bits)

    def counted(kernel: Kernel, *rest: object) -> list[mx.array]:
        launched[kernel.name.rstrip("0123456789")] += 1
        return emulate(kernel, *rest)  # type: ignore[arg-type]

    def begun(inserting: object) -> list[list[np.ndarray]]:
        """What all slots hold behind each change of one story; only frames are stepped without kernels both times."""
        monkeypatch.setattr(kernels, "launch", kernels.on_device)
        device = Device(made, SLOTS, limits)
        long, short = ([None, *device.reading(compose(made.config, None, list(range(5, 5 + n))))][-1] for n in (9, 2))
        rng, held, given = np.random.default_rng(0), [], bits(short)

        def put(slot: int, prefix: object, seed: int) -> None:
            monkeypatch.setattr(kernels, "launch", inserting)
            device.begin(slot, prefix, seed, choice)  # type: ignore[arg-type]
            monkeypatch.setattr(kernels, "launch", kernels.on_device)
            held.append(bits(device._state) + bits(device._state.generator.sinks.prompts[slot].unpacked()))

        put(1, long, 1)
        put(2, short, 2)
        for _ in range(3):
            device.step({slot: rng.normal(0, 0.1, FRAME_SAMPLES).astype(np.float32) for slot in (0, 1)}, {}, [choice])
        mark, marked, captured = device.mark(), bits(device.mark()), device.capture(1)
        taken, beside = bits(captured), bits(extract(device._state, 0))
        put(1, short, 3)
        put(1, None, 4)
        assert all(np.array_equal(*pair) for pair in zip(bits(mark), marked, strict=True))
        assert all(np.array_equal(*pair) for pair in zip(bits(captured), taken, strict=True))
        assert all(np.array_equal(*pair) for pair in zip(bits(short), given, strict=True))
        assert all(np.array_equal(*pair) for pair in zip(bits(extract(device._state, 0)), beside, strict=True))
        monkeypatch.setattr(kernels, "launch", inserting)
        device.set_back(0, mark, 5)
        device.go_on(1, captured, choice)
        held.append(bits(device._state))
        return held

    expected = begun(kernels.on_device)
    for state, other in zip(begun(counted), expected, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(state, other, strict=True))
    assert launched["place_inside_"] == 5 and launched["place_beside_"] == 6
