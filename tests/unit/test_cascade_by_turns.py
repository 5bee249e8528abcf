"""Conversations of the cascade whose history, tools and turns are somebody else's to decide."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from personaplex.by_turns import Call, Directions, Message, Tool, TurnTaking
from personaplex.cascade.backend import Cascade, CascadeCall
from personaplex.cascade.conversation import Manner
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    AnswerBegan,
    AnswerOver,
    Error,
    Event,
    EventStream,
    Settings,
    ToolCall,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import UsageError
from personaplex.persona import Parts
from tests.cascade_engines import Engines, LevelDetector, silence, speech

PARTS = Parts("script-ears", "script-mind", "script-voice", voice="one")
CLOCK = Tool("clock", "Tells the time.", {"type": "object", "properties": {"zone": {"type": "string"}}})


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


@pytest.fixture
def call(engines: Engines) -> Iterator[CascadeCall]:
    manner = Manner(detector=LevelDetector, patient=True)
    with Cascade(1, parts=PARTS, manner=manner) as made, made.open(Settings(seed=3)) as opened:
        yield opened


def until(call: CascadeCall, events: EventStream, *kinds: type[Event]) -> list[Event]:
    """The events up to the first of `kinds`, while the user is silent."""
    found: list[Event] = []
    while not found or not isinstance(found[-1], kinds):
        if (event := events.get(0.02)) is None:
            call.send(silence(0.08))
        else:
            found.append(event)
        assert len(found) < 2000
    return found


def feed(call: CascadeCall, pcm: np.ndarray) -> threading.Thread:
    feeder = threading.Thread(target=call.feed, args=(pcm, 30))
    feeder.start()
    return feeder


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, AgentText)).strip()


def test_an_answer_has_a_beginning_and_an_end_heard_or_not(call: CascadeCall, engines: Engines) -> None:
    events = call.events()
    call.send_text("hello")
    kinds = (AnswerBegan, AgentStarted, AgentEnded, AnswerOver)
    assert [type(e) for e in until(call, events, AnswerOver) if isinstance(e, kinds)] == list(kinds)
    engines.thinker.tokens = ["*", "*"]  # nothing that can be said
    call.send_text("hello")
    assert [type(e) for e in until(call, events, AnswerOver) if isinstance(e, kinds)] == [AnswerBegan, AnswerOver]


def test_messages_are_remembered_and_an_answer_is_given_when_it_is_asked_for(
    call: CascadeCall, engines: Engines
) -> None:
    events = call.events()
    call.add(Message("system", "It is winter."))
    call.add(Message("user", "What time is it?"))
    call.respond("Be brief.", Directions(temperature=0.25, max_tokens=7))
    assert said(until(call, events, AnswerOver)) == "Good day. It is noon."
    call.respond()
    until(call, events, AnswerOver)
    first, second = engines.thinker.asked
    given = [Message("system", "It is winter."), Message("user", "What time is it?")]
    assert first[0].content.startswith("Be brief. You are spoken to") and first[1:] == given
    assert second[1:] == [*given, Message("assistant", "Good day. It is noon.")]
    assert "helpful assistant" in second[0].content, "instructions hold for one answer"
    first_options, second_options = engines.thinker.options
    assert (first_options["temperature"], first_options["max_tokens"]) == (0.25, 7)
    assert second_options["temperature"] != 0.25


def test_tools_are_called_and_their_results_answered(call: CascadeCall, engines: Engines) -> None:
    events = call.events()
    engines.thinker.tokens = [Call("call_1", "clock", '{"zone": "UTC"}'), "It is noon."]
    call.direct(Directions(tools=(CLOCK,), choice="required"))
    call.add(Message("user", "What time is it?"))
    call.respond()
    found = until(call, events, AnswerOver)
    (wanted,) = [event for event in found if isinstance(event, ToolCall)]
    assert (wanted.name, wanted.arguments, wanted.call_id) == ("clock", '{"zone": "UTC"}', "call_1")
    assert not any(isinstance(event, AgentStarted) for event in found)
    call.add(Message("tool", "12:00", call_id="call_1"))
    call.respond()
    assert said(until(call, events, AnswerOver)) == "It is noon."
    assert engines.thinker.options[0]["tools"] == (CLOCK,) and engines.thinker.options[0]["choice"] == "required"
    called = Message("assistant", "", (Call("call_1", "clock", '{"zone": "UTC"}'),))
    question = Message("user", "What time is it?")
    assert engines.thinker.asked[1][1:] == [question, called, Message("tool", "12:00", call_id="call_1")]


def test_tools_that_a_language_model_cannot_use_are_told(
    call: CascadeCall, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(engines.thinker), "consult")
    events = call.events()
    call.direct(Directions(tools=(CLOCK,)))
    call.send_text("hello")
    (error,) = [event for event in until(call, events, AnswerOver) if isinstance(event, Error)]
    assert "script cannot call tools" in str(error.error)
    call.direct(Directions(tools=(CLOCK,), choice="none"))
    call.send_text("hello")
    assert said(until(call, events, AnswerOver)) == "Good day. It is noon."


def test_what_was_not_heard_of_the_last_answer_is_forgotten(call: CascadeCall, engines: Engines) -> None:
    events = call.events()
    call.send_text("hello")
    until(call, events, AnswerOver)
    call.truncate("Good")
    call.send_text("again")
    until(call, events, AnswerBegan)
    call.truncate("too late: another is being made")
    until(call, events, AnswerOver)
    call.send_text("and again")
    until(call, events, AnswerOver)
    answers = [message.content for message in engines.thinker.asked[-1] if message.role == "assistant"]
    assert answers == ["Good", "Good day. It is noon."]


def test_a_message_can_be_taken_back(call: CascadeCall, engines: Engines) -> None:
    events = call.events()
    secret = Message("user", "My secret is blue.")
    call.add(secret)
    call.send_text("hello")
    until(call, events, AnswerOver)
    call.send_text("again")
    until(call, events, AnswerBegan)
    call.forget(secret)  # while an answer is made: from the next on
    until(call, events, AnswerOver)
    call.forget(secret)
    (error,) = [event for event in until(call, events, Error) if isinstance(event, Error)]
    assert "cannot be forgotten alone" in str(error.error)
    call.truncate("Good")
    call.send_text("and again")
    until(call, events, AnswerOver)
    assert [secret in asked for asked in engines.thinker.asked] == [True, True, False]
    assert [message.content for message in engines.thinker.asked[-1][1:]] == [
        "hello", "Good day. It is noon.", "again", "Good", "and again"
    ]  # fmt: skip


def test_by_hand_silence_ends_nothing_and_nobody_is_answered_unasked(call: CascadeCall, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    events = call.events()
    call.take_turns(TurnTaking(by="hand", answers=False))
    call.begin_turn()
    until(call, events, UserStarted)
    feeder = feed(call, np.concatenate([speech(1.0), silence(1.6), speech(0.5)]))
    feeder.join()
    while call._talk.n_frames < 38:  # all of it was lived
        assert not isinstance(events.get(1), UserStopped | AnswerBegan)
    call.end_turn()
    found = until(call, events, UserText)
    while not (isinstance(found[-1], UserText) and found[-1].final):
        found = until(call, events, UserText)
    assert found[-1] == UserText(found[-1].frame, "what time is it", True)
    for _ in range(20):
        call.send(silence(0.08))
        assert not isinstance(events.get(0.02), AnswerBegan)
    call.respond()
    assert said(until(call, events, AnswerOver)) == "Good day. It is noon."
    assert engines.thinker.asked[0][-1] == Message("user", "what time is it")


def test_a_turn_that_is_dropped_is_never_answered(call: CascadeCall, engines: Engines) -> None:
    engines.recogniser.said = ["forget this", "what time is it"]
    events = call.events()
    call.take_turns(TurnTaking(by="hand"))
    call.begin_turn()
    until(call, events, UserStarted)
    feed(call, speech(0.8)).join()
    until(call, events, UserText)
    call.drop_turn()
    until(call, events, UserStopped)
    call.begin_turn()
    feed(call, speech(1.6)).join()
    call.end_turn()
    until(call, events, AnswerOver)
    assert [message.content for message in engines.thinker.asked[0]][1:] == ["what time is it"]


def test_a_shorter_silence_ends_a_turn_sooner_and_numbers_out_of_range_are_refused(
    call: CascadeCall, engines: Engines
) -> None:
    engines.recogniser.said = ["what time is it"] * 2
    lasted = []
    events = call.events()
    for seconds in (0.24, 0.96):
        call.take_turns(TurnTaking(silence_seconds=seconds, answers=False))
        feeder = feed(call, np.concatenate([silence(0.4), speech(1.2), silence(1.6)]))
        started = until(call, events, UserStarted)[-1].frame
        lasted.append(until(call, events, UserStopped)[-1].frame - started)
        feeder.join()
    assert 7 <= lasted[1] - lasted[0] <= 11, "0.72 s are nine frames"
    for wrong in (TurnTaking(onset=1.5), TurnTaking(silence_seconds=-1.0)):
        with pytest.raises(UsageError):
            call.take_turns(wrong)
