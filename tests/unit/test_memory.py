"""What a model will take is known before it is loaded."""

from __future__ import annotations

import mlx.core as mx
import pytest

from personaplex import PersonaPlex
from personaplex.checkpoint.folder import ModelFolder
from personaplex.errors import BackendError, UsageError
from personaplex.nn.state import n_bytes, parameters
from personaplex.runtime.device import Device
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import MemoryPlan, available_bytes, plan
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
    assert planned.total == planned.weights + planned.codec + 4 * planned.slot


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
