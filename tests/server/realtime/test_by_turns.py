"""The protocol for the cascade: messages and events in, events and requests out. No socket, no clock."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import numpy as np
import pytest

from personaplex.by_turns import Directions, Message, Tool, TurnTaking
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    AnswerBegan,
    AnswerOver,
    Capabilities,
    Ended,
    Error,
    Interrupted,
    Overrun,
    Ready,
    Settings,
    ToolCall,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import EngineError
from personaplex.server.realtime import items
from personaplex.server.realtime.machine import Close, Do, DropSound, Forget, Resume
from tests.server.realtime.told import (
    BY_TURNS,
    DUPLEX,
    Told,
    append,
    check,
    done,
    error,
    events,
    heard,
    kinds,
    message,
    one,
    starts,
    update,
)

CLOCK = {"type": "function", "name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}}
SAID = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.delta",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
"""An answer of two frames and a word, in the order that clients rely on."""


@pytest.fixture
def told() -> Told:
    return Told()


def speak(told: Told, text: str = "Hello. ") -> None:
    told.happen(AnswerBegan(0), AgentStarted(0))
    told.frames(1)
    told.happen(AgentText(1, text))
    told.frames(1)


def answer(told: Told, text: str = "Hello. ", *, dropped: bool = False) -> None:
    speak(told, text)
    told.happen(*([Interrupted(2)] if dropped else []), AgentEnded(2), AnswerOver(2, dropped))


def test_a_session_says_what_it_is(told: Told) -> None:
    (created,) = told.events
    session = created["session"]
    assert created["type"] == "session.created" and session["object"] == "realtime.session"
    assert session["mode"] == "cascade" and session["model"] == "model" and session["resume_token"] == "token"
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    turns = session["audio"]["input"]["turn_detection"]
    assert turns == {"type": "server_vad", "create_response": True, "interrupt_response": True}
    able = session["capabilities"]
    assert able["supports_tools"] and able["supports_client_commit"] and able["supports_session_resume"]
    assert not told.machine.started and not told.machine.wants_time


def test_what_is_configured_is_shown_and_is_what_the_conversation_starts_with(told: Told) -> None:
    new = told.say(
        update(
            instructions="Be brief.",
            output_modalities=["text"],
            audio={
                "input": {"format": {"type": "audio/pcmu"}, "transcription": None, "turn_detection": None},
                "output": {"format": {"type": "audio/pcm", "rate": 16_000}, "voice": "two"},
            },
            tools=[CLOCK],
            tool_choice={"type": "function", "name": "clock"},
            max_output_tokens=50,
            seed=7,
        )
    )
    session = one(new, "session.updated")["session"]
    assert session["instructions"] == "Be brief." and session["output_modalities"] == ["text"]
    assert session["audio"]["input"] == {
        "format": {"type": "audio/pcmu"},
        "transcription": None,
        "noise_reduction": None,
        "turn_detection": None,
    }
    assert session["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 16_000}
    assert session["audio"]["output"]["voice"] == "two" and session["tools"] == [CLOCK]
    assert session["tool_choice"] == {"type": "function", "name": "clock"} and session["max_output_tokens"] == 50
    assert not starts(told.actions), "nothing begins before it is needed"
    new = told.say({"type": "session.start"}, {"type": "session.start"})
    assert starts(new) == [Settings("two", "Be brief.", 7)]
    tools = (Tool("clock", "Tells the time.", {"type": "object"}),)
    assert done(new) == [
        ("direct", {"directions": Directions(tools, "clock", None, 50)}),
        ("take_turns", {"turns": TurnTaking(by="hand", answers=False)}),
    ]


def test_only_what_is_named_changes(told: Told) -> None:
    told.say(update(instructions="Be brief.", audio={"output": {"voice": "one"}}), {"type": "session.start"})
    new = told.say(update(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}}))
    session = one(new, "session.updated")["session"]
    assert session["instructions"] == "Be brief." and session["audio"]["output"]["voice"] == "one"
    assert done(new) == [("take_turns", {"turns": TurnTaking(silence_seconds=0.4)})]
    vad = {"type": "server_vad", "threshold": 0.7, "silence_duration_ms": 300, "create_response": False}
    new = told.say(update(audio={"input": {"turn_detection": {**vad, "interrupt_response": False}}}))
    turns = TurnTaking(answers=False, interrupts=False, onset=0.7, silence_seconds=0.3)
    assert done(new) == [("take_turns", {"turns": turns})]
    kind = {"prompt": "Be kind.", "keep_history": True}
    assert done(told.say(update(instructions="Be kind."))) == [("update", kind)]
    two = update(audio={"output": {"voice": "two"}})
    assert done(told.say(two)) == [("update", {"voice": "two", **kind})]
    own = update(audio={"output": {"voice": "marin"}})
    assert done(told.say(own)) == [("update", {"voice": "", **kind})], "and nothing is forgotten for it"
    assert not done(told.say(own))
    assert done(told.say(update(tools=[CLOCK])))[0][0] == "direct"
    assert error(told.say(update(seed=3)))["code"] == "session_started"
    assert told.machine.now.seed is None


@pytest.mark.parametrize("voice", ["alloy", "Marin", "default", {"id": "cedar"}, None])
def test_openais_voices_are_the_personas_own(told: Told, voice: Any) -> None:
    assert one(told.say(update(audio={"output": {"voice": voice}})), "session.updated")
    assert told.machine.now.voice is None


def test_the_user_is_heard_understood_and_answered(told: Told) -> None:
    new = told.say(append(4800))
    assert starts(new) and len(heard(new)) == 4800 and np.allclose(heard(new), 0.25)
    told.happen(Ready(0, 5))
    assert one(told.actions, "session.ready")["seed"] == 5
    new = told.happen(
        UserStarted(3),
        UserText(4, "what", False),
        UserText(5, "what time", False),
        UserText(6, "no wait", False),
        UserStopped(9),
        UserText(9, "what time is it", True),
    )
    assert kinds(new) == [
        "input_audio_buffer.speech_started",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.delta",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
    ], "a guess that changed is told when it is certain"
    assert events(new)[0]["audio_start_ms"] == 240 and events(new)[3]["audio_end_ms"] == 720
    assert [event["delta"] for event in events(new)[1:3]] == ["what", " time"]
    name = events(new)[0]["item_id"]
    assert {event.get("item_id", event.get("item", {}).get("id")) for event in events(new)} == {name}
    assert events(new)[-1]["transcript"] == "what time is it"
    assert events(new)[-1]["usage"] == {"type": "duration", "seconds": 0.48}
    before = len(told.actions)
    answer(told)
    assert kinds(told.actions[before:]) == SAID
    first = one(told.actions[before:], "response.output_item.added")["item"]
    assert one(told.actions[before:], "conversation.item.done")["previous_item_id"] == name
    last = one(told.actions[before:], "response.done")["response"]
    assert last["status"] == "completed" and last["output"][0]["id"] == first["id"]
    assert last["output"][0]["content"] == [{"type": "output_audio", "transcript": "Hello. "}]
    sound = [b64decode(e["delta"]) for e in told.events if e["type"] == "response.output_audio.delta"]
    assert len(b"".join(sound)) == 2 * 2 * 1920
    check(told.events)


def test_transcripts_that_are_not_wanted_are_not_told(told: Told) -> None:
    told.say(update(audio={"input": {"transcription": None}}), append())
    new = told.happen(UserStarted(1), UserText(2, "a", False), UserStopped(3), UserText(3, "a b", True))
    assert not any("transcription" in kind for kind in kinds(new))


def test_text_is_told_as_text(told: Told) -> None:
    told.say(update(output_modalities=["text"]), message("hello"), {"type": "response.create"})
    answer(told)
    said = [kind for kind in kinds(told.actions) if kind.startswith("response.output_")]
    assert said == ["response.output_item.added", "response.output_text.delta", "response.output_text.done",
                    "response.output_item.done"]  # fmt: skip
    assert one(told.actions, "response.content_part.done")["part"] == {"type": "text", "text": "Hello. "}


def test_typed_items_are_remembered_and_answered_when_asked(told: Told) -> None:
    new = told.say(message("It is winter.", "system"), message("hello"), message("Good day.", "assistant"))
    assert starts(new) and [what for what, _ in done(new)] == ["direct", "take_turns", "add", "add", "add"]
    assert [arguments["message"] for what, arguments in done(new) if what == "add"] == [
        Message("system", "It is winter."), Message("user", "hello"), Message("assistant", "Good day.")
    ]  # fmt: skip
    added = [event for event in events(new) if event["type"] == "conversation.item.added"]
    assert [event["previous_item_id"] for event in added] == [None, added[0]["item"]["id"], added[1]["item"]["id"]]
    asked = {"instructions": "Sing.", "metadata": {"turn": "3"}, "temperature": 0.1, "output_modalities": ["text"]}
    new = told.say({"type": "response.create", "response": asked})
    assert done(new) == [("respond", {"instructions": "Sing.", "directions": Directions(temperature=0.1)})]
    waits = [told.machine.wants_time]
    answer(told)
    made = one(told.actions, "response.done")["response"]
    assert made["metadata"] == {"turn": "3"} and made["output_modalities"] == ["text"]
    assert [*waits, told.machine.wants_time] == [True, False], "silence passes until it is over"
    answer(told)
    assert told.events[-1]["response"]["metadata"] is None, "of one response only"


def test_tools_are_called_and_answered(told: Told) -> None:
    told.say(update(tools=[CLOCK]), message("what time is it"), {"type": "response.create"})
    new = told.happen(AnswerBegan(0), ToolCall(1, "clock", '{"zone":"UTC"}', "call_1"), AnswerOver(2, False))
    assert kinds(new) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    called = {"type": "function_call", "status": "completed", "call_id": "call_1", "name": "clock"}
    made = one(new, "response.output_item.done")["item"]
    assert {**made, **called, "arguments": '{"zone":"UTC"}'} == made
    assert one(new, "response.output_item.added")["item"]["arguments"] == ""
    result = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
    new = told.say({"type": "conversation.item.create", "item": result}, {"type": "response.create"})
    assert done(new) == [
        ("add", {"message": Message("tool", "noon", call_id="call_1")}),
        ("respond", {"instructions": None, "directions": None}),
    ]
    assert error(told.say({"type": "conversation.item.create", "item": {**result, "call_id": "no"}}))["code"] == (
        "invalid_tool_call_id"
    )
    check(told.events)


def test_a_result_that_comes_while_the_agent_still_speaks_is_answered_after_that(told: Told) -> None:
    told.say(update(tools=[CLOCK]), append())
    speak(told, "One moment. ")
    told.happen(ToolCall(1, "clock", "{}", "call_1"))
    assert error(told.say({"type": "response.create"}))["code"] == "conversation_already_has_active_response"
    result = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
    new = told.say({"type": "conversation.item.create", "item": result}, {"type": "response.create"})
    assert [what for what, _ in done(new)] == ["add"]
    new = told.happen(AgentEnded(9), AnswerOver(9, False))
    assert [what for what, _ in done(new)] == ["respond"]
    answer(told)
    check(told.events)


def test_an_interrupted_response_is_cancelled(told: Told) -> None:
    told.say(append())
    answer(told, dropped=True)
    made = one(told.actions, "response.done")["response"]
    assert made["status"] == "cancelled" and made["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert made["output"][0]["status"] == "incomplete" and told.machine.epoch == 1


def test_a_cancelled_response_is_over_when_the_conversation_says_so(told: Told) -> None:
    assert error(told.say({"type": "response.cancel"}))["code"] == "response_cancel_not_active"
    told.say(append())
    speak(told)
    wrong = {"type": "response.cancel", "response_id": "resp_of_another", "event_id": "mine"}
    refused = error(told.say(wrong))
    assert refused["code"] == "response_cancel_not_active" and refused["event_id"] == "mine"
    assert done(told.say({"type": "response.cancel"})) == [("cancel", {})]
    new = told.happen(Interrupted(2), AgentEnded(2), AnswerOver(2, True))
    assert one(new, "response.done")["response"]["status_details"]["reason"] == "client_cancelled"
    answer(told, dropped=True)
    assert told.events[-1]["response"]["status_details"]["reason"] == "turn_detected", "that was another"
    check(told.events)


def test_a_cancel_that_comes_too_late_changes_nothing(told: Told) -> None:
    told.say(append())
    speak(told)
    told.say({"type": "response.cancel"})
    new = told.happen(AgentEnded(2), AnswerOver(2, False))
    assert one(new, "response.done")["response"]["status"] == "completed"


def test_what_was_not_played_is_forgotten(told: Told) -> None:
    told.say(append())
    told.happen(AnswerBegan(0), AgentStarted(0))
    for word in ("one ", "two ", "three "):
        told.frames(5)
        told.happen(AgentText(told.frame, word))
    name = one(told.actions, "response.output_item.added")["item"]["id"]
    truncate = {"type": "conversation.item.truncate", "item_id": name, "content_index": 0, "audio_end_ms": 850}
    new = told.say(truncate)
    assert done(new) == [("cancel", {})], "who cuts short what is being said has stopped playing it"
    new = told.happen(Interrupted(15), AgentEnded(15), AnswerOver(15, True))
    assert done(new) == [("truncate", {"text": "one two"})]
    assert one(new, "conversation.item.truncated")["audio_end_ms"] == 850
    shown = one(told.say({"type": "conversation.item.retrieve", "item_id": name}), "conversation.item.retrieved")
    assert shown["item"]["content"] == [{"type": "output_audio", "transcript": "one two"}]
    assert done(told.say({**truncate, "audio_end_ms": 400})) == [("truncate", {"text": "one"})]
    assert error(told.say({**truncate, "audio_end_ms": 900}))["code"] == "invalid_value"
    answer(told)
    assert error(told.say({**truncate, "audio_end_ms": 0}))["code"] == "item_not_truncatable"
    assert error(told.say({**truncate, "item_id": "no"}))["code"] == "item_not_found"


def test_what_was_acknowledged_is_what_is_remembered_of_an_interrupted_answer(told: Told) -> None:
    told.say(append())
    told.happen(AnswerBegan(0), AgentStarted(0))
    for word in ("one ", "two "):
        told.frames(5)
        told.happen(AgentText(told.frame, word))
    new = told.say({"type": "playback.ack", "played_ms": 410})
    assert one(new, "playback.acknowledged")["sent_ms"] == 800
    new = told.happen(Interrupted(10), AgentEnded(10), AnswerOver(10, True))
    assert done(new) == [("truncate", {"text": "one"})]
    answer(told)
    assert [what for what, _ in done(told.actions)].count("truncate") == 1


def test_items_are_retrieved_and_deleted(told: Told) -> None:
    told.say(message("secret", id="mine"))
    shown = one(told.say({"type": "conversation.item.retrieve", "item_id": "mine"}), "conversation.item.retrieved")
    assert shown["item"]["content"] == [{"type": "input_text", "text": "secret"}]
    assert error(told.say(message("again", id="mine")))["code"] == "item_exists"
    new = told.say({"type": "conversation.item.delete", "item_id": "mine"})
    assert done(new) == [("forget", {"message": Message("user", "secret")})]
    assert one(new, "conversation.item.deleted")["item_id"] == "mine"
    assert error(told.say({"type": "conversation.item.retrieve", "item_id": "mine"}))["code"] == "item_not_found"


def test_by_hand_a_turn_is_what_was_sent_until_it_is_committed(told: Told) -> None:
    told.say(update(audio={"input": {"turn_detection": None}}))
    assert error(told.say({"type": "input_audio_buffer.commit"}))["code"] == "input_audio_buffer_commit_empty"
    told.say(append(100), append(100))
    turns = [action for action in told.actions if isinstance(action, Do) and action.in_turn]
    assert turns == [Do("begin_turn", {}, in_turn=True)]
    told.happen(UserStarted(0))
    new = told.say({"type": "input_audio_buffer.commit"})
    assert [action for action in new if isinstance(action, Do)] == [Do("end_turn", {}, in_turn=True)]
    assert kinds(new) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    new = told.happen(UserStopped(1), UserText(2, "hello", True))
    assert kinds(new) == ["conversation.item.input_audio_transcription.completed"]
    assert events(new)[0]["item_id"] == one(told.actions, "input_audio_buffer.committed")["item_id"]
    told.say(append(100))
    new = told.say({"type": "input_audio_buffer.clear"})
    assert DropSound() in new and ("drop_turn", {}) in done(new)
    assert error(told.say({"type": "input_audio_buffer.commit"}))["code"] == "input_audio_buffer_commit_empty"


def test_failures_are_told(told: Told) -> None:
    told.say(append())
    new = told.happen(AnswerBegan(0), Error(0, EngineError("the server is down")), AnswerOver(0, False))
    assert error(new)["code"] == "engine_failed" and error(new)["type"] == "server_error"
    made = one(new, "response.done")["response"]
    assert made["status"] == "failed" and "is down" in made["status_details"]["error"]["message"]
    assert one(told.happen(Overrun(5, 2, 7)), "input_audio_buffer.overrun")["dropped_ms"] == 160
    speak(told)
    new = told.happen(Ended(9, "shutdown"))
    assert kinds(new)[-2:] == ["response.done", "session.closed"] and new[-1] == Close(1012, "shutdown")
    assert not told.say(append()) and not told.happen(Ready(0, 1)), "it is over"
    check(told.events)


def test_a_conversation_that_cannot_be_opened_ends_the_session(told: Told) -> None:
    told.say(append())
    told.machine.failed(EngineError("nothing works"), 1011)
    assert told.machine.take()[-1] == Close(1011, "error")


def test_who_leaves_is_let_go(told: Told) -> None:
    told.say(append())
    speak(told)
    new = told.say({"type": "session.close"})
    assert kinds(new)[-1] == "session.closed" and new[-1] == Close(1000, "client_close")
    check(told.events)


def test_a_heartbeat_an_acknowledgement_and_a_wish_to_resume(told: Told) -> None:
    assert kinds(told.say({"type": "session.heartbeat"})) == ["session.heartbeat_ack"]
    assert told.say({"type": "session.event_ack", "server_event_seq": 5}) == [Forget(5)]
    wish = {"type": "session.resume", "resume_token": "abc"}
    assert told.say({**wish, "server_event_seq": 7}) == [Resume("abc", 7)]
    assert told.say({**wish, "last_received_server_event_seq": 8}) == [Resume("abc", 8)]
    told.say(append())
    assert error(told.say(wish))["code"] == "session_started"


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ("[]", "unknown_event", "type"),
        ("{}", "unknown_event", "type"),
        ('{"type": "session.explode"}', "unknown_event", "type"),
        ('{"type": 7}', "unknown_event", "type"),
        ('{"type": "session.update"}', "missing_required_parameter", "session"),
        ('{"type": "input_audio_buffer.append", "audio": "#"}', "invalid_value", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "ü"}', "invalid_value", "audio"),
        (update(temperature=9), "invalid_value", "session.temperature"),
        (update(output_modalities=[]), "invalid_value", "output_modalities"),
        (update(audio={"input": {"format": {"type": "audio/opus"}}}), "invalid_value", "session.audio.input.format"),
        (update(audio={"output": {"voice": "nobody"}}), "unknown_persona_or_voice", None),
        (update(tools=[{"type": "mcp", "name": "x"}]), "invalid_value", "tools.0"),
        (update(tools=[{"type": "function", "name": "a b"}]), "invalid_value", "session.tools.0.name"),
        (message("", "user"), "invalid_value", "item.content"),
        ({"type": "conversation.item.create", "item": {"type": "message", "role": "user"}},
         "missing_required_parameter", "item"),
        ({"type": "conversation.item.create", "previous_item_id": "root", "item": message("a")["item"]},
         "unsupported", "previous_item_id"),
        ({"type": "response.create", "response": {"conversation": "none"}}, "out_of_band_unsupported", None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_changes_nothing(told: Told, wrong: Any, code: str, param: str | None) -> None:
    before = told.machine.now
    new = told.say(wrong)
    found = error(new)
    assert (found["code"], found["param"], found["type"]) == (code, param, "invalid_request_error")
    assert len(new) == 1 and told.machine.now == before
    told.machine.binary()
    assert error(told.machine.take())["code"] == "binary_not_supported"


def test_the_beta_is_spoken_to_who_speaks_it() -> None:
    told = Told(dialect="beta")
    session = one(told.actions, "session.created")["session"]
    assert session["modalities"] == ["audio", "text"] and session["input_audio_format"] == "pcm16"
    assert "audio" not in session and session["turn_detection"]["type"] == "server_vad"
    told.say(
        {
            "type": "session.update",
            "session": {
                "modalities": ["text", "audio"],
                "voice": "two",
                "input_audio_format": "g711_alaw",
                "output_audio_format": "g711_ulaw",
                "input_audio_transcription": {"model": "whisper-1"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 200},
                "temperature": 0.8,
                "max_response_output_tokens": "inf",
            },
        }
    )
    session = one(told.actions, "session.updated")["session"]
    assert session["voice"] == "two" and session["input_audio_format"] == "g711_alaw"
    assert session["output_audio_format"] == "g711_ulaw" and session["max_response_output_tokens"] == "inf"
    assert told.machine.now.turn_taking() == TurnTaking(silence_seconds=0.2)
    before = len(told.actions)
    told.say(message("hello"), {"type": "response.create"})
    answer(told)
    said = kinds(told.actions[before:])
    assert "conversation.item.created" in said and "response.audio.delta" in said
    assert "response.audio_transcript.done" in said and not any("output_audio" in kind for kind in said)
    assert "conversation.item.done" not in said and "conversation.item.added" not in said
    made = told.events[-1]["response"]
    assert made["modalities"] == ["audio", "text"] and made["output_audio_format"] == "g711_ulaw"
    assert made["output"][0]["content"] == [{"type": "audio", "transcript": "Hello. "}]
    sound = [b64decode(e["delta"]) for e in told.events if e["type"] == "response.audio.delta"]
    assert abs(len(b"".join(sound)) - 2 * 640) <= 2


def test_a_client_shows_by_its_words_that_it_speaks_the_beta(told: Told) -> None:
    new = told.say({"type": "session.update", "session": {"voice": "two"}})
    assert one(new, "session.updated")["session"]["voice"] == "two"
    new = told.say(update(output_modalities=["audio"]))
    assert one(new, "session.updated")["session"]["output_modalities"] == ["audio"]


def test_old_items_leave() -> None:
    told = Told()
    told.say(message("first", id="first"), *(message("more") for _ in range(1000)))
    assert error(told.say({"type": "conversation.item.retrieve", "item_id": "first"}))["code"] == "item_not_found"


@pytest.mark.parametrize("able", [BY_TURNS, DUPLEX])
def test_a_client_writes_so_much_into_a_conversation_and_no_more(
    monkeypatch: pytest.MonkeyPatch, able: Capabilities
) -> None:
    monkeypatch.setattr(items, "MOST_WRITTEN", 1000)
    told = Told(able)

    def write(name: str, n: int) -> list[str]:
        made = told.say({"type": "conversation.item.create", "item": message("x" * n, id=name)["item"]})
        return [error(made)["code"]] if kinds(made) == ["error"] else kinds(made)

    taken = ["conversation.item.added", "conversation.item.done"]
    assert write("a", 600) == taken
    assert write("b", 401) == ["conversation_too_long"]
    assert write("c", 400) == taken
    assert write("d", 1) == ["conversation_too_long"]
    if not able.full_duplex:
        told.say({"type": "conversation.item.delete", "item_id": "a"})
        assert write("e", 600) == taken
