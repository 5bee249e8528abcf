"""What is kept of conversations: prompts that were read, snapshots, and the last seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from personaplex.conversation import AgentText, Audio, Ended, Event, Ready, Settings
from personaplex.errors import CheckpointError, Closed, OutputError, PersonaError, UsageError
from personaplex.runtime.call import Call
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits
from personaplex.units import FRAME_SAMPLES
from tests.small import small_engine, tiny_engine

REWIND = 3.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with small_engine(2, Limits(pinned_frames=40, rewind_seconds=REWIND)) as engine:
        yield engine


def settings(seed: int) -> Settings:
    return Settings(voice="", prompt=[4 + seed % 80, 9, 11], seed=seed)


def sound(seed: int, n_frames: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, n_frames * FRAME_SAMPLES).astype(np.float32)


def hear(call: Call, pcm: np.ndarray) -> list[np.ndarray]:
    """Feed whole frames and wait for what the agent makes of each."""
    events = call.events()
    said: list[np.ndarray] = []
    call.feed(pcm)
    while len(said) < len(pcm) // FRAME_SAMPLES:
        event = events.get(60)
        assert event is not None and not isinstance(event, Ended)
        if isinstance(event, Audio):
            said.append(event.pcm)
    return said


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def held_back(engine: Engine) -> Iterator[None]:
    """The device thread does nothing meanwhile; what is asked for waits until the end of the block."""
    begun, over = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        over.wait(30)

    engine.submit(wait)
    begun.wait(30)
    try:
        yield
    finally:
        over.set()


def rest(call: Call) -> list[Event]:
    call.finish()
    return list(call.events())


@given(seed=st.integers(0, 50), at=st.integers(0, 30), unheard=st.integers(3 * FRAME_SAMPLES, 5 * FRAME_SAMPLES - 1))
@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6)
def test_a_snapshot_goes_on_as_if_never_stopped(
    engine: Engine, tmp_path: Path, seed: int, at: int, unheard: int
) -> None:
    """At any frame, the window full or not, two frames and a part still unheard: bit for bit, and the same text."""
    path, pcm = tmp_path / "call.safetensors", sound(seed, at + 8)
    cut = at * FRAME_SAMPLES
    with engine.open(settings(seed)) as call:
        hear(call, pcm[:cut])
        with held_back(engine):  # one frame is heard after it, and then at least two wait
            call.send(pcm[cut : cut + unheard])
            saved = engine.submit(lambda: engine._capture(call._seat))
        state, notes = saved.result(30)
        engine._device.write(path, state, notes.to_json())
        at += 1
        call.feed(pcm[cut + unheard :])
        expected = rest(call)
    with engine.load(path) as again:
        assert again.seed == seed
        again.feed(pcm[cut + unheard :])
        found = rest(again)
    assert isinstance(found[0], Ready) and found[0].frame == at

    def texts(events: list[Event]) -> list[Event]:
        return [event for event in events if isinstance(event, AgentText) and event.frame >= at]

    assert texts(found) == texts(expected)
    assert same(*([e.pcm for e in events if isinstance(e, Audio) and e.frame >= at] for events in (found, expected)))


def test_a_snapshot_is_refused_where_it_does_not_belong(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "call.safetensors"
    with engine.open(settings(1)) as call:
        hear(call, sound(1, 2))
        call.save(path)
        with pytest.raises(OutputError):
            call.save(tmp_path / "no such folder" / "call.safetensors")
    with pytest.raises(Closed):
        call.save(path)
    data = path.read_bytes()
    for damaged, message in (
        (data[:-100], "cut short"),
        (data[:-100] + bytes(100), "damaged"),
        (data.replace(b"snapshot", b"snapshop"), "no snapshot"),
        (b"", "cannot be read|not a safetensors"),
    ):
        (tmp_path / "bad.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            engine.load(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="another model"), tiny_engine(1) as other:
        other.load(path)
    assert engine.in_use == 0


@given(seed=st.integers(0, 50), age=st.integers(12, 40), seconds=st.floats(0.08, 0.9))
@examples(max_examples=3)
def test_rewinding_forgets_and_nothing_else(engine: Engine, seed: int, age: int, seconds: float) -> None:
    """Set back beside a neighbour, in a full window, twice: the same sound gives the same answer bit for bit."""
    pcm = sound(seed, age)
    with engine.open(settings(seed + 1)) as neighbour, engine.open(settings(seed)) as call:
        beside = hear(neighbour, pcm[: 8 * FRAME_SAMPLES])
        said = hear(call, pcm)
        went = call.rewind(seconds)
        assert seconds * 12.5 <= went <= seconds * 12.5 + 12
        again = hear(call, pcm[-went * FRAME_SAMPLES :])
        assert same(again, said[-went:])
        assert call.rewind(seconds, seed=seed + 77) == went
        other = hear(call, pcm[-went * FRAME_SAMPLES :])
        assert not same(other, again) and all(np.isfinite(pcm).all() for pcm in other)
        beside += hear(neighbour, pcm[8 * FRAME_SAMPLES :])
    with engine.open(settings(seed + 1)) as alone:
        assert same(hear(alone, pcm), beside)


def test_rewinding_as_far_as_it_goes_finds_what_was_seen_then() -> None:
    """Beyond the rows that a short prompt leaves unpinned, which would hold a little more; and no more is kept."""
    limits = Limits(pinned_frames=16, rewind_seconds=REWIND, voice_activity=None)
    with small_engine(1, limits) as engine, engine.open(settings(1)) as call:
        pcm = sound(1, 95)
        said = hear(call, pcm)
        ages = [age for age, _ in call._seat.marks]
        assert ages == [36, 48, 60, 72, 84]
        went = call.rewind(REWIND)
        assert went == 95 - 48 and same(hear(call, pcm[-went * FRAME_SAMPLES :]), said[-went:])


def test_rewinding_too_far_is_refused(engine: Engine) -> None:
    with engine.open(settings(1)) as call:
        hear(call, sound(1, 3))
        for seconds in (0.0, -1.0, REWIND + 0.1, float("nan")):
            with pytest.raises(UsageError, match="goes back"):
                call.rewind(seconds)
        with pytest.raises(UsageError, match="cannot go back"):
            call.rewind(1.0)
        hear(call, sound(1, 3))


def test_a_prompt_is_read_once_and_kept_on_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cold, from memory and from disk alike; a file that is damaged is warned of and made anew."""
    limits = Limits(pinned_frames=40, prefix_folder=tmp_path / "prefixes")
    said, pcm = [], sound(3, 6)
    for engine_number in range(3):
        with small_engine(1, limits) as engine:
            for _ in range(2):
                with engine.open(settings(5)) as call:
                    said.append(hear(call, pcm))
            with engine.open(settings(6)) as call:
                assert not same(hear(call, pcm), said[0])
        files = sorted((tmp_path / "prefixes").iterdir())
        assert len(files) == 2
        if engine_number == 1:
            good = [path.read_bytes() for path in files]
            files[0].write_bytes(good[0][:-9] + b"something")
            files[1].write_bytes(b"nothing")
            assert not caplog.records
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert [path.read_bytes() for path in files] == good
    assert all(same(said[0], other) for other in said)


def test_kept_prompts_are_bounded_in_bytes_and_the_oldest_leave(tmp_path: Path) -> None:
    with small_engine(1) as engine:
        with engine.open(settings(1)) as call:
            hear(call, sound(1, 1))
        one = engine.prefix_bytes
    assert one > 0
    with small_engine(1, Limits(pinned_frames=40, prefix_bytes=round(2.5 * one))) as engine:
        for seed in range(5):
            with engine.open(settings(seed)):
                pass
            assert engine.prefix_bytes == min(seed + 1, 2) * one
        kept = [*engine._device.prefixes._kept]
        for seed in (3, 9):  # the one before the last is used again, so the last leaves
            with engine.open(settings(seed)):
                pass
        left = [*engine._device.prefixes._kept]
        assert left[0] == kept[0] and left[1] not in kept
    with small_engine(1, Limits(pinned_frames=40, prefix_bytes=0)) as engine, engine.open(settings(1)) as call:
        assert engine.prefix_bytes == 0 and len(hear(call, sound(1, 1))) == 1


def test_a_disk_that_cannot_be_written_costs_no_conversation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    limits = Limits(pinned_frames=40, prefix_folder=tmp_path / "file")
    with small_engine(1, limits) as engine, engine.open(settings(1)) as call:
        assert len(hear(call, sound(1, 1))) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_prompt_too_long_to_be_pinned_is_refused_and_the_slot_is_free() -> None:
    with small_engine(1) as engine:
        with pytest.raises(PersonaError, match="at most 40"):
            engine.open(Settings(voice="", prompt=[5] * 60)).__enter__()
        with engine.open(Settings(voice="", prompt="")) as call:
            hear(call, sound(1, 1))
