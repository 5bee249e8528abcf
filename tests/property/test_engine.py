"""A conversation cannot tell whether it has neighbours, and no slot is ever lost."""

from __future__ import annotations

import dataclasses
import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personaplex import Sampling
from personaplex.audio import read_audio
from personaplex.bench import engine as bench
from personaplex.conversation import (
    Audio,
    Degenerate,
    Ended,
    Error,
    Event,
    Ready,
    Settings,
    UserStarted,
    UserStopped,
)
from personaplex.cuda.kernel import on_card
from personaplex.errors import BackendError, Busy, CheckpointError, Closed, PersonaError, UsageError
from personaplex.runtime.call import Call
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits
from personaplex.runtime.seat import Seat
from personaplex.turns import Turn
from personaplex.units import FRAME_SAMPLES
from tests.conftest import SOAK
from tests.small import small_engine, small_model

QUESTION = Path(__file__).parents[2] / "examples" / "question.wav"
SLOTS = 3
LONGEST = 16
ROUNDING = 2e-5
"""How far sound may differ between engines of different slot counts, of the largest of it."""
SAMPLINGS = [None, Sampling(greedy=True), Sampling(text_top_k=0, audio_top_k=300, repetition_penalty=1.2)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with small_engine(SLOTS) as engine:
        yield engine


def settings(seed: int) -> Settings:
    """Prompt and sampling follow from the seed, so that neighbours differ in everything."""
    prompt = [4 + (seed * 7 + i) % 80 for i in range(1 + seed % 5)]
    return Settings(voice="", prompt=prompt, seed=seed, sampling=SAMPLINGS[seed % 3])


@cache
def sound(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, LONGEST * FRAME_SAMPLES).astype(np.float32)


def audio(events: list[Event]) -> list[np.ndarray]:
    return [event.pcm for event in events if isinstance(event, Audio)]


ALONE: dict[int, list[np.ndarray]] = {}


def alone(engine: Engine, seed: int) -> list[np.ndarray]:
    """What a conversation says when the other slots are empty."""
    if seed not in ALONE:
        with engine.open(settings(seed)) as call:
            call.feed(sound(seed))
            call.finish()
            ALONE[seed] = audio(list(call.events()))
    return ALONE[seed]


class Speaker:
    """One conversation of a script, and what came of it so far."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.seed, self.sent = seed, 0
        self.call = engine.open(settings(seed))
        self.events = self.call.events()
        self.heard: list[np.ndarray] = []

    def send(self, n_frames: int) -> None:
        n_frames = min(n_frames, LONGEST - self.sent)
        self.call.feed(sound(self.seed)[self.sent * FRAME_SAMPLES : (self.sent + n_frames) * FRAME_SAMPLES])
        self.sent += n_frames

    def wait(self) -> None:
        while len(self.heard) < self.sent:
            event = self.events.get(60)
            assert event is not None and not isinstance(event, Ended)
            self.heard += audio([event])

    def check(self, expected: list[np.ndarray]) -> None:
        self.heard += audio(list(self.events))
        for mine, alone in zip(self.heard, expected[: len(self.heard)], strict=True):
            assert np.array_equal(mine, alone)


moves = st.tuples(
    st.integers(0, SLOTS - 1), st.sampled_from(["send", "send", "send and wait", "send and wait", "leave"])
)


@given(script=st.lists(moves, min_size=8, max_size=20), first_seed=st.integers(0, 2))
def test_nobody_hears_who_joins_or_leaves(engine: Engine, script: list[tuple[int, str]], first_seed: int) -> None:
    """Bit for bit, on a CPU, whatever the neighbours say, draw, join and leave, and however the steps fall together."""
    seats: dict[int, Speaker] = {}
    all_of_them: list[Speaker] = []
    expected = [alone(engine, seed) for seed in range(6)]
    for at, (who, what) in enumerate(script):
        if who not in seats:
            gone = [speaker for speaker in all_of_them if speaker not in seats.values()]
            seats[who] = Speaker(engine, (first_seed + len(all_of_them)) % 6)
            all_of_them.append(seats[who])
            for speaker in gone:
                speaker.call.close()  # again, when somebody else may sit there
        if what == "leave":
            seats.pop(who).call.close()
            continue
        seats[who].send(1 + at % 2)
        if what == "send and wait":
            seats[who].wait()
    for speaker in seats.values():
        speaker.send(2)
        speaker.call.finish()
    for speaker in all_of_them:
        speaker.check(expected[speaker.seed])
    assert all(len(speaker.heard) == speaker.sent for speaker in seats.values())
    assert engine.in_use == 0


def test_a_conversation_says_what_respond_says() -> None:
    """The engine adds nothing to the model's own path; only the other slot count may round differently."""
    model = small_model()
    expected = list(model.respond_realtime([sound(1)], voice=None, prompt=[5, 6, 7], seed=4))
    for limits in (Limits(pinned_frames=0), Limits(pinned_frames=40)):
        with small_engine(2, limits) as engine, engine.open(Settings(voice="", prompt=[5, 6, 7], seed=4)) as call:
            call.feed(sound(1))
            call.finish()
            said = audio(list(call.events()))
            pinned = engine._device._state.generator.pinned[0].item()
        # The frame that ends the prompt belongs to the talk already, as in training (`test_slots.py`).
        assert pinned == (model.compose(None, [5, 6, 7]).n_frames - 1 if limits.pinned_frames else 0)
        n_same = LONGEST if limits.pinned_frames == 0 else 0
        assert len(said) == len(expected)
        for frame, pcm in list(zip(expected, said, strict=True))[:n_same]:
            assert np.abs(frame.audio - pcm).max() < ROUNDING * np.abs(pcm).max()
    assert np.abs(expected[-1].audio - said[-1]).max() > 1e-4  # the pinned prompt is heard once the window is full


def test_two_hundred_opens_closes_and_crashes_lose_no_slot(engine: Engine) -> None:
    rng = random.Random(1)
    held: list[Call] = []
    refused = 0

    def crash() -> None:
        call = engine.open(settings(rng.randrange(6)))
        call.send(sound(0)[: rng.randrange(3 * FRAME_SAMPLES)])
        raise RuntimeError("the owner dies with a conversation in hand")

    for _ in range(200):
        act = rng.random()
        try:
            if act < 0.5:
                held.append(engine.open(settings(rng.randrange(6))))
                held[-1].send(sound(1)[: rng.randrange(3 * FRAME_SAMPLES)])
            elif act < 0.7:
                thread = threading.Thread(target=lambda: _swallow(crash))
                thread.start()
                thread.join()
            elif held and act < 0.85:
                held.pop(rng.randrange(len(held))).close()
            elif held:
                del held[rng.randrange(len(held))]  # forgotten, not closed
        except Busy as busy:
            refused += 1
            assert (busy.in_use, len(held)) == (SLOTS, SLOTS)
    assert refused > 10
    held.clear()
    gc.collect()
    assert engine.in_use == 0
    full = [engine.open(settings(i)) for i in range(SLOTS)]
    for call in full:
        with call:
            call.feed(sound(2)[:FRAME_SAMPLES])


def _swallow(act: Callable[[], None]) -> None:
    with suppress(RuntimeError, Busy):
        act()


def test_a_long_conversation_keeps_its_memory(record_property: Callable[[str, object], None]) -> None:
    """Half an hour with PERSONAPLEX_SOAK, ten windows otherwise; fed faster than real time beside an idle slot.

    How long a step takes in each quarter goes into the report (`pytest --junitxml FILE`): a test that times fails when
    the machine is busy.
    """
    n_frames = 22_500 if SOAK else 120
    with small_engine(2) as engine, engine.open(settings(3)) as call:
        events = call.events()
        sizes, times, rng = [], [], np.random.default_rng(0)
        for at in range(n_frames):
            began = time.perf_counter()
            call.feed(rng.normal(0, 0.1, FRAME_SAMPLES).astype(np.float32))
            while not isinstance(event := events.get(60), Audio):
                assert not isinstance(event, Ended)
            assert event.frame == at and np.isfinite(event.pcm).all()
            times.append(time.perf_counter() - began)
            if at % 30 == 29:
                sizes.append(engine.submit(mx.get_active_memory).result())
    half = len(sizes) // 2
    # A card's memory is given back late: there it is what is held at the least that must not grow.
    grown = min(sizes[half:]) - min(sizes[:half]) if on_card() else max(sizes) - min(sizes)
    assert grown < 200_000
    record_property("median step of each quarter, ms", [float(1000 * np.median(q)) for q in np.array_split(times, 4)])


@pytest.mark.parametrize("ending", ["engine.close()", "pass"])
def test_the_process_ends_well_whether_the_engine_was_closed_or_not(ending: str) -> None:
    """A thread that leaves its MLX streams behind makes the process abort at its end."""
    program = (
        "from tests.small import small_engine; from personaplex.conversation import Settings; import numpy as np\n"
        "engine = small_engine(1); call = engine.open(Settings(voice='', prompt='')); call.feed(np.zeros(4000))\n"
        f"{ending}"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_user_is_heard_off_the_device_and_nothing_of_it_is_lost(engine: Engine) -> None:
    question = read_audio(QUESTION)
    with engine.open(settings(1)) as call:
        call.feed(np.concatenate([question, np.zeros(36_000, np.float32)]))
        call.finish()
        events = list(call.events())
    turns = [event for event in events if isinstance(event, (UserStarted, UserStopped))]
    assert [type(event) for event in turns] == [UserStarted, UserStopped]
    assert turns[0].frame < 12 and abs(turns[1].frame - (len(question) / 24_000 + 1) * 12.5) < 6


def test_whoever_is_not_read_is_ended(engine: Engine) -> None:
    limits = Limits(pinned_frames=40, unread_seconds=1.0, voice_activity=None)
    with small_engine(2, limits) as strict, strict.open(settings(1)) as read, strict.open(settings(2)) as unread:
        events = read.events()
        with pytest.raises(Closed):
            for _ in range(60):
                unread.feed(sound(2)[:FRAME_SAMPLES])
                read.feed(sound(1)[:FRAME_SAMPLES])
                while not isinstance(events.get(60), Audio):
                    pass
        assert list(unread.events()) == [Ended(unread.n_frames, "unread")]
        assert strict.in_use == 1


def test_numbers_that_are_none_end_one_conversation_and_leave_nothing(engine: Engine) -> None:
    """A fault is put into one slot; its neighbour and the next conversation in the slot hear nothing of it."""
    expected = {seed: alone(engine, seed) for seed in (1, 2)}
    with small_engine(2) as hurt, hurt.open(settings(1)) as broken, hurt.open(settings(2)) as well:
        broken.feed(sound(1)[: 2 * FRAME_SAMPLES])
        well.feed(sound(2)[: 2 * FRAME_SAMPLES])
        hurt.submit(lambda: poison(hurt)).result()
        broken.feed(sound(1)[: 2 * FRAME_SAMPLES])
        events = list(broken.events())
        assert [type(e) for e in events[-3:]] == [Degenerate, Error, Ended] and events[-1].reason == "error"  # type: ignore[attr-defined]
        well.feed(sound(2)[2 * FRAME_SAMPLES :])
        with hurt.open(settings(1)) as again:
            again.feed(sound(1))
            again.finish()
            said = audio(list(again.events()))
        well.finish()
        beside = audio(list(well.events()))
    for found, seed in ((said, 1), (beside, 2)):
        assert len(found) == LONGEST
        assert all(np.abs(a - b).max() < ROUNDING * np.abs(b).max() for a, b in zip(found, expected[seed], strict=True))


def poison(engine: Engine) -> None:
    ring = engine._device._state.generator.temporal.rings[0]
    ring.k[0], ring.v[0] = mx.nan, mx.nan


def test_a_fault_of_the_device_thread_ends_everything_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    engine = small_engine(2)
    call = engine.open(settings(1))
    call.__enter__()
    engine.submit(lambda: setattr(engine._device, "_state", None)).result()
    call.feed(sound(1)[:FRAME_SAMPLES])
    events = list(call.events())
    assert [type(e) for e in events] == [Ready, Error, Ended]
    with pytest.raises(BackendError, match="the engine stopped"):
        engine.open(settings(1))
    assert [record.message for record in caplog.records] == ["the engine stopped"]
    engine.close()


def test_what_cannot_be_loaded_is_raised_where_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Engine(tmp_path / "nothing")
    with pytest.raises(UsageError):
        small_engine(0)
    for bad in (
        {"pinned_frames": -1},
        {"backlog_seconds": 0.0},
        {"unread_seconds": float("nan")},
        {"rewind_seconds": -1.0},
        {"prefix_bytes": -1},
        {"recover": True},
    ):
        with pytest.raises(UsageError):
            Limits(**bad)


def test_a_voice_that_does_not_exist_ends_only_its_own_conversation(engine: Engine) -> None:
    with engine.open(settings(1)) as well:
        call = engine.open(Settings(voice="no such voice", prompt=[5]))
        with pytest.raises(PersonaError), call:
            pass
        assert isinstance(list(call.events())[-1], Ended)
        with pytest.raises(UsageError):
            engine.open(Settings(seed=-1))
        well.feed(sound(1)[:FRAME_SAMPLES])
    assert engine.in_use == 0


def test_degenerate_speech_is_undone_if_that_is_wanted() -> None:
    """The smallest model is random, so its sound is taken for noise: an event, and with `recover` a way back."""
    for recover in (False, True):
        said: list[np.ndarray] = []
        limits = Limits(pinned_frames=40, rewind_seconds=3.0, recover=recover)
        with small_engine(1, limits) as engine, engine.open(settings(0)) as call:
            n_frames, events, signs = 0, call.events(), []
            while n_frames < 40:
                call.feed(sound(1)[:FRAME_SAMPLES])
                while not isinstance(event := events.get(60), Audio):
                    signs += [event] if isinstance(event, Degenerate) else []
                said.append(event.pcm)
                n_frames += 1
            ages = engine.submit(lambda: [seat.age for seat in engine._seats.values()]).result()
            call.feed(np.tile(sound(1), 2))
            call.finish()
            assert list(events)[-1] == Ended(n_frames + 2 * LONGEST, "finished")
        assert signs, "the smallest model has become a good speaker; choose another one"
        assert (ages[0] < n_frames) == recover
        # From the beginning, with the same sound: with the same seed it would go the same way.
        back_at = signs[0].frame + 1
        assert not np.array_equal(said[0], said[back_at]) or not np.array_equal(said[1], said[back_at + 1])


def test_another_role_begins_in_the_agents_pause_and_forgets(engine: Engine) -> None:
    """What is said then is what a new conversation with that role says; the neighbour hears nothing of it."""
    expected = {seed: alone(engine, seed) for seed in (1, 2)}
    first = dataclasses.replace(settings(1), prompt=[60, 61, 62])
    with engine.open(settings(2)) as neighbour, engine.open(first) as call:
        neighbour.feed(sound(2)[: 4 * FRAME_SAMPLES])
        events, seat = call.events(), engine._seats[1]
        n_heard = n_ready = 0
        for n_frames in (5, 2):  # the smallest model never pauses by itself
            call.feed(sound(5)[: n_frames * FRAME_SAMPLES])
            for _ in range(n_frames):
                while not isinstance(event := events.get(60), Audio):
                    n_ready += isinstance(event, Ready)
                n_heard += 1
            if n_heard == 5:
                call.update(prompt=settings(1).prompt)
                while seat.change is None:
                    engine.submit(lambda: None).result()
        assert n_ready == 1
        engine.submit(lambda: pause(engine, seat)).result()
        while (event := events.get(60)) != Ready(7, seed=1):
            assert event is not None and not isinstance(event, Ready)
        call.feed(sound(1))
        call.finish()
        again = audio(list(events))
        neighbour.feed(sound(2)[4 * FRAME_SAMPLES :])
        neighbour.finish()
        beside = audio(list(neighbour.events()))
    assert len(again) == LONGEST and all(np.array_equal(a, b) for a, b in zip(again, expected[1], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(beside, expected[2], strict=True))


def pause(engine: Engine, seat: Seat) -> None:
    seat.agent = Turn()
    engine._change_in_a_pause(seat)


def test_the_benchmark_steps_all_slots_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_engine(3) as engine:
        step, n_slots = engine._device.step, []

        def count(frames: dict[int, np.ndarray], *more: Any) -> object:
            n_slots.append(len(frames))
            return step(frames, *more)

        monkeypatch.setattr(engine._device, "step", count)
        assert len(bench._steps(engine, "", 10)) == 10
    assert n_slots == [3] * 15


def test_a_role_that_cannot_be_used_changes_nothing(engine: Engine) -> None:
    with engine.open(settings(1)) as call:
        call.update(voice="no such voice")
        call.feed(sound(1)[: 3 * FRAME_SAMPLES])
        call.finish()
        events = list(call.events())
    assert [type(event.error) for event in events if isinstance(event, Error)] == [PersonaError]
    assert all(np.array_equal(a, b) for a, b in zip(audio(events), alone(engine, 1), strict=False))
    assert events[-1] == Ended(3, "finished")
