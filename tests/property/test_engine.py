"""A conversation cannot tell whether it has neighbours, and no slot is ever lost."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personaplex import Sampling
from personaplex.conversation import Audio, Ended, Event, Settings
from personaplex.errors import Busy
from personaplex.runtime.call import Call
from personaplex.runtime.engine import Engine, Limits
from personaplex.units import FRAME_SAMPLES
from tests.conftest import SOAK
from tests.small import small_engine, small_model

SLOTS = 3
LONGEST = 16
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
            seats[who] = Speaker(engine, (first_seed + len(all_of_them)) % 6)
            all_of_them.append(seats[who])
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
        n_same = LONGEST if limits.pinned_frames == 0 else 0
        assert len(said) == len(expected)
        for frame, pcm in list(zip(expected, said, strict=True))[:n_same]:
            assert np.abs(frame.audio - pcm).max() < 1e-4
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


def test_a_long_conversation_keeps_memory_and_step_time() -> None:
    """Half an hour with PERSONAPLEX_SOAK, ten windows otherwise; fed faster than real time beside an idle slot."""
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
    assert max(sizes) - min(sizes) < 200_000
    quarter = n_frames // 4
    assert np.median(times[-quarter:]) < 1.5 * np.median(times[:quarter]) + 0.01
