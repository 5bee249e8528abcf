"""Any messages and any events in any order: a machine answers, never breaks, and keeps what clients rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    AnswerBegan,
    AnswerOver,
    Audio,
    Capabilities,
    Degenerate,
    Ended,
    Error,
    Event,
    Interrupted,
    Overrun,
    Ready,
    ToolCall,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import EngineError
from tests.server.realtime.told import BY_TURNS, DUPLEX, FRAME, Told, append, check, events, message

TEXT = st.sampled_from(["", "hello", "stop </script>", "\u0000\ud83d", "x" * 300])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    "type instructions voice tools tool_choice modalities output_modalities audio input output format rate "
    "turn_detection transcription temperature max_output_tokens seed sampling persona input_audio_format".split()
)
WILD_SESSION = st.dictionaries(NAMES, JSON, max_size=5)
TYPES = st.sampled_from(
    "session.update session.start session.heartbeat session.event_ack session.resume input_audio_buffer.append "
    "input_audio_buffer.commit input_audio_buffer.clear output_audio_buffer.clear conversation.item.create "
    "conversation.item.retrieve conversation.item.delete conversation.item.truncate response.create response.cancel "
    "playback.ack nonsense".split()
)
VAD = st.sampled_from([None, {"type": "server_vad"}, {"type": "semantic_vad", "create_response": False}])
TOOLS = st.sampled_from([[], [{"type": "function", "name": "clock"}]])
FORMATS = st.sampled_from([{"type": "audio/pcm", "rate": 24_000}, {"type": "audio/pcmu"}, {"type": "audio/opus"}])


def session(turns: Any, tools: Any, form: Any) -> dict[str, Any]:
    audio = {"input": {"format": form, "turn_detection": turns}, "output": {"format": form}}
    return {"type": "session.update", "session": {"type": "realtime", "audio": audio, "tools": tools}}


def about_item(kind: str, at: int, ms: int) -> dict[str, Any]:
    """Of the item numbered `at`, whether there is one or not."""
    return {"type": f"conversation.item.{kind}", "item_id": f"item_x_{at}", "audio_end_ms": ms}


def result(at: int) -> dict[str, Any]:
    item = {"type": "function_call_output", "call_id": f"call_{at}", "output": "x"}
    return {"type": "conversation.item.create", "item": item}


MESSAGES = st.one_of(
    st.builds(session, VAD, TOOLS, FORMATS),
    st.builds(append, st.integers(0, 400)),
    st.builds(message, TEXT, st.sampled_from(["user", "system", "assistant"])),
    st.builds(about_item, st.sampled_from(["retrieve", "delete", "truncate"]), st.integers(1, 9), st.integers(0, 200)),
    st.builds(result, st.integers(0, 2)),
    st.builds(lambda ms: {"type": "playback.ack", "played_ms": ms}, st.integers(0, 500)),
    st.sampled_from(
        [{"type": kind} for kind in ("input_audio_buffer.commit", "input_audio_buffer.clear", "response.create",
                                     "response.cancel", "output_audio_buffer.clear", "session.start")]
    ),
    st.builds(lambda kind, more: {**more, "type": kind}, TYPES, st.dictionaries(st.text(max_size=6), JSON, max_size=3)),
    st.builds(lambda wild: {"type": "session.update", "session": wild}, WILD_SESSION),
)  # fmt: skip
RAW = st.one_of(st.text(max_size=40), MESSAGES.map(json.dumps).map(lambda text: text[: len(text) // 2]))
EVENTS = st.one_of(
    st.sampled_from(
        [Ready(0, 1), Ready(0, 1, kept=True), UserStarted(1), UserStopped(2), AnswerBegan(3), AgentStarted(3),
         Audio(4, FRAME), AgentEnded(5), Interrupted(5), AnswerOver(6, False), AnswerOver(6, True), Overrun(6, 1, 2),
         Degenerate(6, "noise"), Error(6, EngineError("no"))]
    ),
    st.builds(UserText, st.just(1), TEXT, st.booleans()),
    st.builds(AgentText, st.just(1), TEXT),
    st.builds(lambda at: ToolCall(1, "clock", "{}", f"call_{at}"), st.integers(0, 2)),
)  # fmt: skip
# As often the one as the other; `one_of` would draw from all of their kinds alike.
WORLD = st.lists(st.booleans().flatmap(lambda asks: MESSAGES if asks else EVENTS), max_size=60)


@pytest.mark.parametrize("able", [BY_TURNS, DUPLEX], ids=["by turns", "duplex"])
@settings(max_examples=150, deadline=None)
@given(world=WORLD)
def test_whatever_happens_is_told_in_order(able: Capabilities, world: list[dict[str, Any] | Event]) -> None:
    told = Told(able)
    for what in world:
        if isinstance(what, Event):
            if able.full_duplex and isinstance(what, AnswerBegan | AnswerOver | ToolCall):
                continue  # of a duplex model nobody hears that
            told.happen(what)
        else:
            new = events(told.say(json.dumps(what)))
            refused = [event["error"] for event in new if event["type"] == "error"]
            assert all(error["message"] and error["code"] != "internal_error" for error in refused)
    told.happen(Ended(9, "closed"))
    assert told.events[-1]["type"] == "session.closed"
    check(told.events)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(RAW, max_size=20))
def test_whatever_is_no_message_is_an_error_and_nothing_else(texts: list[str]) -> None:
    told = Told()
    for text in texts:
        for event in events(told.say(text)):
            assert event["type"] in ("error", "session.heartbeat_ack"), text


def test_the_rules_that_these_tests_hold_machines_to_can_be_broken() -> None:
    made = {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}}
    done = {"type": "response.done", "response": {"id": "r", "status": "completed", "output": []}}
    item = {"id": "i", "type": "message"}
    added = {"type": "response.output_item.added", "response_id": "r", "output_index": 0, "item": item}
    check([made, done])
    closed = {"type": "session.closed"}
    worlds: list[list[dict[str, Any]]] = [[made, made], [done], [made, added, done], [added], [made, closed]]
    for wrong in worlds:
        with pytest.raises(AssertionError):
            check(wrong)
