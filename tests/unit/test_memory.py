"""What a model will take is known before it is loaded."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.checkpoint.folder import ModelFolder
from personaplex.config import LMConfig, MimiConfig
from personaplex.engine.generator import Generator
from personaplex.errors import BackendError, UsageError
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.attention import Ring, empty_ring
from personaplex.nn.sinks import Sinks, follow, open_sinks
from personaplex.nn.state import extract, insert, n_bytes, parameters
from personaplex.runtime.device import Device
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import MemoryPlan, available_bytes, plan, plan_of
from personaplex.units import FRAME_SAMPLES
from tests.conftest import PARITY

LIMITS = Limits(pinned_frames=50, rewind_seconds=2.0, prefix_bytes=0)


def test_the_plan_is_what_is_used_then() -> None:
    before = mx.get_active_memory()
    planned = plan(ModelFolder(PARITY), 3, LIMITS, mx.float32)
    assert mx.get_active_memory() - before < 100_000, "planning took memory itself"
    model = PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False)
    device = Device(lambda: model, 3, LIMITS)
    assert planned.weights == n_bytes(parameters(model.lm))
    assert planned.codec == n_bytes(parameters(model.mimi))
    state = n_bytes(device.capture(0))
    assert 3 * planned.slot == pytest.approx(n_bytes(device._state), rel=0.02) and state < planned.slot
    each = planned.slot + planned.prompt  # every slot may have a prompt of its own
    assert planned.total == planned.weights + planned.codec + 4 * each + 3 * planned.working


def test_a_card_says_what_is_free_and_a_mac_what_it_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        type = mx.DeviceType.gpu

    monkeypatch.setattr(mx, "default_device", Gpu)
    for about, expected in (
        ({"total_memory": 9, "free_memory": 7}, 7 + mx.get_cache_memory()),
        ({"memory_size": 9, "max_recommended_working_set_size": 6}, 6),
        ({}, None),
    ):
        monkeypatch.setattr(mx, "device_info", lambda about=about: about)
        assert available_bytes() == expected


def test_eight_bits_hold_twice_the_slots_of_the_7b(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its real size, never evaluated; the numbers are reckoned by hand."""
    lm, mimi = LanguageModel(LMConfig(), 8), Mimi(MimiConfig())
    rows, dim, layers = 3000 + 256, 4096, 32
    plain, packed = (plan_of(lm, mimi, 64, Limits(kv_bits=bits), mx.bfloat16) for bits in (16, 8))
    codec = 2 * 8 * 2 * 4 * 512 * 251  # and convolutions' tails
    assert plain.slot == pytest.approx(layers * 2 * 2 * dim * rows + codec, rel=0.01)
    assert packed.slot == pytest.approx(layers * 2 * (dim + 4 * 32) * rows + codec, rel=0.01)
    assert plain.prompt == packed.prompt == layers * 2 * dim * 256 + 4
    shared = plan_of(lm, mimi, 64, Limits(), mx.bfloat16, prompts=1)
    assert plain.total - shared.total == 63 * plain.prompt
    assert plain.working < 20e6 < packed.working < 250e6
    assert 120e9 < plain.total < 140e9 and packed.total < 95e9
    plain.check(140 * 10**9)
    monkeypatch.setattr("personaplex.runtime.memory.enabled", lambda: True)
    assert plan_of(lm, mimi, 128, Limits(kv_bits=8), mx.bfloat16).total < 145e9
    with pytest.raises(BackendError):
        plan_of(lm, mimi, 96, Limits(), mx.bfloat16).check(140 * 10**9)


def test_a_step_works_within_what_is_planned_for_it() -> None:
    model = PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False)
    device = Device(model, 3, LIMITS)
    planned = plan_of(model.lm, model.mimi, 3, LIMITS)
    frames = {slot: np.zeros(FRAME_SAMPLES, np.float32) for slot in range(3)}
    device.step(frames, {}, [])
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    device.step(frames, {}, [])
    assert 0 < mx.get_peak_memory() - before < 3 * planned.working


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    planned = MemoryPlan(weights=16 * 2**30, codec=2**29, slot=3 * 2**29, slots=4)
    planned.check(24 * 2**30)
    with pytest.raises(BackendError, match=r"4 slots need 24.00 GiB: weights 16.00 GiB, .* 1.50 GiB for each .* 23.00"):
        planned.check(23 * 2**30)
    available = available_bytes()
    assert available is None or 2**28 < available < 2**50
    if available is not None:
        with pytest.raises(BackendError, match="slots need"):
            Engine(PARITY, 50_000_000)


def test_a_shorter_window_takes_less_and_a_longer_one_is_refused() -> None:
    whole = plan(ModelFolder(PARITY), 1, LIMITS, mx.float32)
    short = plan(ModelFolder(PARITY, context_seconds=2.0), 1, LIMITS, mx.float32)
    assert short.slot < whole.slot and short.weights == whole.weights
    with Engine(PARITY, limits=Limits(context_seconds=2.0)) as engine:
        assert engine.model.config.lm.context == 25 == engine.model.lm.temporal.context
    for seconds in (0.0, 1e5, float("nan")):
        with pytest.raises(UsageError, match="window"):
            Engine(PARITY, limits=Limits(context_seconds=seconds))


@pytest.mark.parametrize("clear", [True, False])
def test_a_slot_is_written_in_place(clear: bool) -> None:
    """Of 64 slots only one, and of its rows those that there are; whoever still holds the state before keeps it."""
    state = [mx.ones((64, 2, 500, 64)), mx.zeros((64, 3))]
    one = [mx.full((1, 2, 9, 64), 2.0), mx.ones((1, 3))]
    mx.eval(state, one)
    state, before = insert(state, 3, one, clear=clear), state
    mx.eval(state)
    assert mx.array_equal(before[0], mx.ones_like(before[0])) and not before[1].any()
    del before
    mx.clear_cache()
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    state = insert(state, 5, one, clear=clear)
    mx.eval(state)
    assert mx.get_peak_memory() - held < 10_000
    rest = 0.0 if clear else 1.0
    for slot in (3, 5):
        assert mx.array_equal(state[0][slot, :, :9], one[0][0]) and (state[0][slot, :, 9:] == rest).all()
    assert (state[0][4] == 1).all() and state[1].sum() == 6


def test_a_prompt_is_read_by_itself() -> None:
    """What it leaves has as many rows as it has columns: reading it needs no ring for the whole window."""
    model = PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False)
    generator = Generator(model.lm, model.config, pins=50)
    prompt = model.compose(None, [5] * 20)
    prefix = [None, *generator.reading(prompt, 64)][-1]
    whole = generator.read(prompt)
    assert prefix is not None and whole is not None and prompt.n_frames == 32
    assert {rows.shape[2] for ring in prefix.temporal.rings for rows in ring} == {32}
    assert {rows.shape[2] for ring in whole.temporal.rings for rows in ring} == {model.lm.config.context + 50}
    for short, full in zip(prefix.temporal.rings, whole.temporal.rings, strict=True):
        assert mx.array_equal(short.k, full.k[:, :, :32]) and not full.k[:, :, 32:].any()


@pytest.mark.parametrize("bits", [16, 8])
def test_a_prompt_that_follows_is_written_in_place(bits: int) -> None:
    """Of 32 slots two are due: no more is touched or copied than their own pinned keys."""
    ring = empty_ring((32, 2, 400, 64), mx.float32, bits)
    ring = ring.write(mx.arange(400)[None, None, :, None], *mx.random.normal((2, 32, 2, 400, 64)))
    rings: tuple[Ring, ...] = (ring,)
    prompt = open_sinks((extract(ring, 3),), 20, mx.float32)
    sinks = Sinks(prompt.prompts * 32, mx.zeros((32,), mx.int32))
    mx.eval(rings, sinks)
    before = [np.array(rows) for rows in ring]
    del ring
    mx.clear_cache()
    mx.reset_peak_memory()
    held, pinned, shift = mx.get_active_memory(), np.full(32, 9), np.zeros(32, np.int32)
    shift[[3, 30]] = 25, 50
    rings, after = follow(rings, sinks, pinned, shift, [3, 30], 1e4)
    mx.eval(rings, after)
    assert mx.get_peak_memory() - held < 200_000 < n_bytes(rings) / 10
    for mine, was in zip(rings[0], before, strict=True):
        changed = (np.array(mine) != was).any(axis=(1, 3))
        assert not changed[[slot for slot in range(32) if slot not in (3, 30)]].any() and not changed[:, 9:].any()
    assert (np.array(rings[0].k) != before[0]).any(axis=(1, 3))[[3, 30], :9].all()
    assert after.shift.tolist() == shift.tolist()
