"""Slots with one persona share its keys as they were read, and nobody hears it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.engine.duplex import DuplexState
from personaplex.engine.generator import Prefix
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Sampling
from personaplex.errors import CheckpointError
from personaplex.nn.sinks import PromptKeys
from personaplex.nn.state import n_bytes
from personaplex.runtime.device import Device
from personaplex.runtime.limits import Limits
from personaplex.units import FRAME_SAMPLES
from tests.small import small_model

SAMPLING = Sampling(text_top_k=20, audio_top_k=50)
SLOTS, PINS, FRAMES = 3, 30, 24
BITS = pytest.mark.parametrize("kv_bits", [16, 8])


@pytest.fixture(scope="module")
def model() -> PersonaPlex:
    return small_model()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts follow every third frame: the window is twelve."""
    monkeypatch.setattr("personaplex.nn.sinks.STRIDE", 3)


def opened(model: PersonaPlex, kv_bits: int) -> Device:
    return Device(model, SLOTS, Limits(pinned_frames=PINS, kv_bits=kv_bits))


def read(device: Device, n_text: int) -> Prefix:
    prefix = [None, *device.reading(compose(device.model.config, None, list(range(5, 5 + n_text))))][-1]
    assert prefix is not None
    return prefix


def prompts(device: Device) -> tuple[PromptKeys, ...]:
    return device._state.generator.sinks.prompts


def shifts(device: Device) -> list[int]:
    return np.array(device._state.generator.sinks.shift).tolist()  # type: ignore[no-any-return]


def talk(device: Device, frames: range, slots: Sequence[int]) -> list[bytes]:
    """All that those in `slots` hear and say, each to a sound of its own."""
    said = []
    for n in frames:
        sound = np.random.default_rng(n).normal(0, 0.1, (SLOTS, FRAME_SAMPLES)).astype(np.float32)
        heard = device.step({slot: sound[slot] for slot in slots}, {}, [SAMPLING])
        said += [heard[slot].pcm.tobytes() + heard[slot].tokens.tobytes() for slot in slots]
    return said


@BITS
def test_a_session_gets_what_it_gets_with_keys_of_its_own(model: PersonaPlex, kv_bits: int) -> None:
    """Byte for byte, past the window, with two sharers at different places and another prompt between them."""

    def call(*, shared: bool) -> list[bytes]:
        device = opened(model, kv_bits)
        prefix = read(device, 9)
        device.begin(0, prefix, 1, SAMPLING)
        device.begin(1, read(device, 4), 2, SAMPLING)
        said = talk(device, range(5), [0, 1])
        device.begin(2, prefix if shared else read(device, 9), 3, SAMPLING)
        said += talk(device, range(5, FRAMES), [0, 1, 2])
        first, other, second = prompts(device)
        same = [
            a is b
            for mine, its in zip(first.layers, second.layers, strict=True)
            for a, b in zip(mine, its, strict=True)
        ]
        assert set(same) == {shared} and first.n_rows == second.n_rows != other.n_rows
        of_two = n_bytes((first, other))
        assert n_bytes(prompts(device)) == (of_two if shared else of_two + n_bytes(first))
        assert min(shifts(device)) > 0 and shifts(device)[0] != shifts(device)[2]
        # What all of them are turned from is still what was read.
        for keys, again in zip(first.unpacked(), read(device, 9).temporal.rings, strict=True):
            assert mx.array_equal(keys, again.read(model.lm.dtype)[0])
        return said

    assert call(shared=True) == call(shared=False)


@BITS
def test_what_one_leaves_the_other_keeps_and_the_last_takes_it_along(model: PersonaPlex, kv_bits: int) -> None:
    def call(*, leaves: bool) -> list[bytes]:
        device = opened(model, kv_bits)
        prefix: Prefix | None = read(device, 9)
        device.begin(0, prefix, 1, SAMPLING)
        device.begin(2, prefix, 3, SAMPLING)
        talk(device, range(5), [0, 2])
        held = weakref.ref(prompts(device)[0].layers[0][0])
        prefix = None
        if leaves:
            device.begin(0, read(device, 4), 5, SAMPLING)
        said = talk(device, range(5, FRAMES), [2])
        gc.collect()
        assert held() is not None
        for slot in (0, 2):
            device.begin(slot, None, 1, SAMPLING)
        gc.collect()
        assert held() is None
        return said

    assert call(leaves=True) == call(leaves=False)


def padded(state: DuplexState) -> DuplexState:
    """As files had it before prompts were shared: as many rows as can be pinned, in no packing."""
    prompt = state.generator.sinks.prompts[0]
    rows = [(0, 0), (0, 0), (0, PINS - prompt.n_rows), (0, 0)]
    return state.holding((PromptKeys(tuple((mx.pad(keys, rows),) for keys in prompt.unpacked()), prompt.dtype),))


@BITS
@pytest.mark.parametrize("earlier", [False, True], ids=["now", "as before prompts were shared"])
def test_a_conversation_goes_on_from_a_file(model: PersonaPlex, kv_bits: int, earlier: bool, tmp_path: Path) -> None:
    """As the one it was taken from, turned some strides on and again after; what is captured shares, too."""
    device, file = opened(model, kv_bits), tmp_path / "a.safetensors"
    prefix = read(device, 9)
    device.begin(0, prefix, 1, SAMPLING)
    device.begin(1, prefix, 1, SAMPLING)
    talk(device, range(18), [0, 1])
    captured = device.capture(0)
    assert captured.generator.sinks.prompts[0] is prompts(device)[0]
    device.write(file, padded(captured) if earlier else captured, {})
    before = shifts(device)[0]
    expected = talk(device, range(18, 30), [0])
    assert shifts(device)[0] > before > 0
    for state in (device.read(file)[0], captured):
        other = opened(model, kv_bits)
        other.go_on(0, state, SAMPLING)
        assert talk(other, range(18, 30), [0]) == expected


def test_a_file_that_lacks_pinned_keys_is_refused(model: PersonaPlex, tmp_path: Path) -> None:
    """A kernel would read on behind them."""
    device, file = opened(model, 16), tmp_path / "a.safetensors"
    device.begin(0, read(device, 9), 1, SAMPLING)
    captured = device.capture(0)
    (prompt,) = captured.generator.sinks.prompts
    n_pinned = cast(int, captured.generator.pinned.item())
    for n_rows, sound in ((n_pinned, True), (n_pinned - 1, False)):
        cut = PromptKeys(tuple((keys[:, :, :n_rows],) for keys in prompt.unpacked()), prompt.dtype)
        device.write(file, captured.holding((cut,)), {})
        if sound:
            device.read(file)
        else:
            with pytest.raises(CheckpointError, match="damaged"):
                device.read(file)
