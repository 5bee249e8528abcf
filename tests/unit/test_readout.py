"""A frame is one evaluation and one transfer: what is read of it, and that nothing else is waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from personaplex.conversation import Settings
from personaplex.engine.generator import Step
from personaplex.engine.readout import Readout, pack
from personaplex.engine.sampling import Sampling, step_entropies
from personaplex.nn.sinks import STRIDE
from personaplex.runtime.device import Device
from personaplex.runtime.limits import Limits
from personaplex.units import FRAME_SAMPLES
from tests.small import small_model

SLOTS = 3
PIN = Limits(pinned_frames=40, prefix_bytes=0)


@pytest.fixture(scope="module")
def device() -> Device:
    """Slots at different places, with prompts of which the window of 12 holds only a part."""
    made = Device(small_model(), SLOTS, PIN)
    for slot in range(SLOTS):
        prompt = made.compose(Settings(voice="", prompt=[5] * (1 + 3 * slot)))
        made.begin(slot, [None, *made.reading(prompt)][-1], slot, Sampling())
    for turn in range(2 * SLOTS):  # the first of them makes what is derived from weights
        made.step({slot: frame for slot, frame in sound(turn).items() if turn <= 2 * slot}, {}, [Sampling()])
    return made


def sound(seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {slot: rng.normal(0, 0.1, FRAME_SAMPLES).astype(np.float32) for slot in range(SLOTS)}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often something was evaluated or read: `eval`, `read`."""
    counted: Counter[str] = Counter()

    def counting(name: str, call: Callable[..., Any], always: bool) -> Callable[..., Any]:
        def counts(*arguments: Any, **more: Any) -> Any:
            counted[name] += always or isinstance(arguments[0], mx.array)
            return call(*arguments, **more)

        return counts

    for owner, name, kind in (
        (mx, "eval", "eval"), (mx, "async_eval", "eval"), (mx, "synchronize", "eval"), (np, "array", "read"),
        (np, "asarray", "read"), (mx.array, "item", "read"), (mx.array, "tolist", "read"),
        (mx.array, "__bool__", "read"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, counting(kind, getattr(owner, name), kind == "eval"))
    yield counted


def test_a_frame_is_one_evaluation_and_one_transfer(device: Device, waits: Counter[str]) -> None:
    with_a_look = 0
    for turn in range(3 * STRIDE):
        waits.clear()
        device.step(sound(turn), {}, [Sampling()])
        assert waits["eval"] == 1
        with_a_look += waits["read"] > 1
        assert waits["read"] in (1, 4), "the readout; and where a prompt is due, where everybody is"
    assert 2 * SLOTS <= with_a_look <= 3 * SLOTS, "each prompt follows once a stride, and nobody looks in between"


def test_it_says_what_the_arrays_said() -> None:
    rng = np.random.default_rng(0)
    pcm, latents = mx.array(rng.normal(size=(2, FRAME_SAMPLES)).astype(np.float32)), mx.ones((2, 3, 4))
    latents[1, 2, 3] = mx.inf
    tokens = mx.array(rng.integers(-2, 1 << 30, (2, 17)), mx.int32)
    logits = mx.random.normal((2, 50)), mx.random.normal((2, 8, 40))
    step = Step(tokens, mx.array([True, False]), mx.zeros((2, 4)), *logits)
    state: Any = Device(small_model(), 2, PIN)._state.generator
    far = mx.array([(1 << 30) + 1, 7], mx.int32)
    state = state._replace(temporal=state.temporal._replace(position=far), pinned=mx.array([3, 0], mx.int32))
    read = Readout.of(pack(pcm, step, latents, state))
    assert np.array_equal(read.pcm, np.array(pcm)) and np.array_equal(read.tokens, np.array(tokens))
    assert read.valid.tolist() == [True, False] and read.hears.tolist() == [True, False]
    assert np.array_equal(read.entropies, np.array(step_entropies(*logits)))
    assert read.position.tolist() == [(1 << 30) + 1, 7] and read.pinned.tolist() == [3, 0]
    assert read.shift.tolist() == [0, 0] and read.must_follow(12) and not read.must_follow(1 << 30)
