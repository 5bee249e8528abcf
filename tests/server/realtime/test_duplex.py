"""The protocol for a duplex model: one response all the time, epochs, and what it does without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Capabilities,
    Degenerate,
    Ended,
    Interrupted,
    Ready,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.server.realtime.duplex import FENCED_FRAMES
from personaplex.server.realtime.machine import Close
from tests.server.realtime.told import DUPLEX, Told, append, check, done, error, kinds, message, one, starts, update


@pytest.fixture
def told() -> Told:
    return Told(DUPLEX)


def ready(told: Told) -> Told:
    told.say(append())
    told.happen(Ready(0, 7))
    return told


def test_a_session_says_what_it_cannot(told: Told) -> None:
    session = one(told.actions, "session.created")["session"]
    able = session["capabilities"]
    assert session["mode"] == "duplex" and able["implementation_level"] == "model_native_duplex"
    assert able["chunk_period_ms"] == 80 and able["supports_session_resume"] and able["supports_multi_session"]
    for flag in ("barge_in", "audio_truncate", "client_commit", "tools", "user_transcripts"):
        assert able[f"supports_{flag}"] is False
    assert session["audio"]["input"]["turn_detection"] is None, "turns are the model's own affair"


def test_one_response_is_open_and_holds_every_frame(told: Told) -> None:
    new = told.say(append())
    assert starts(new) and not done(new)
    assert kinds(told.happen(Ready(0, 7))) == [
        "session.ready", "response.created", "response.output_item.added", "conversation.item.added",
        "response.content_part.added",
    ]  # fmt: skip
    told.frames(3)
    told.happen(AgentStarted(3), AgentText(3, "Hello "))
    told.frames(2)
    new = told.happen(AgentEnded(5))
    assert kinds(new) == ["response.listen"] and one(told.actions, "response.speak")["epoch"] == 0
    assert kinds(told.actions).count("response.output_audio.delta") == 5, "silence, too"
    assert kinds(told.actions).count("response.created") == 1
    new = told.happen(Degenerate(6, "noise"), Ended(6, "shutdown"))
    assert kinds(new)[0] == "response.degenerate" and kinds(new)[-2:] == ["response.done", "session.closed"]
    assert new[-1] == Close(1012, "shutdown")
    check(told.events)


def test_a_cancel_begins_an_epoch_of_which_nothing_before_is_told(told: Told) -> None:
    ready(told)
    told.happen(AgentStarted(0), AgentText(0, "Hello "))
    told.frames(2)
    new = told.say({"type": "response.cancel"})
    assert done(new) == [("cancel", {})]
    assert one(new, "response.done")["response"]["status_details"]["reason"] == "client_cancelled"
    assert error(told.say({"type": "response.cancel"}))["code"] == "response_cancel_not_active"
    assert not told.frames(3) and not told.happen(AgentText(5, "there "))
    new = told.happen(Interrupted(5), AgentEnded(5))
    assert one(new, "response.created")["response"]["epoch"] == 1
    assert "response.output_audio.delta" in kinds(told.frames(1))
    check(told.events)


def test_who_says_nothing_is_cancelled_at_once_and_nobody_is_silenced_for_ever(told: Told) -> None:
    ready(told)
    new = told.say({"type": "output_audio_buffer.clear"})
    assert one(new, "response.created")["response"]["epoch"] == 1 and kinds(new)[-1] == "output_audio_buffer.cleared"
    told.happen(AgentStarted(0))
    told.say({"type": "response.cancel"})
    assert not told.frames(FENCED_FRAMES - 1), "its end is not told"
    assert "response.created" in kinds(told.frames(1))
    check(told.events)


def test_what_is_not_for_a_duplex_model_is_refused_in_words(told: Told) -> None:
    ready(told)
    item = one(told.actions, "response.output_item.added")["item"]["id"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"type": "input_audio_buffer.commit"}, "client_commit_unsupported"),
        ({"type": "response.create"}, "conversation_already_has_active_response"),
        ({"type": "conversation.item.truncate", "item_id": item, "audio_end_ms": 0}, "audio_truncate_unsupported"),
        ({"type": "conversation.item.delete", "item_id": item}, "item_delete_unsupported"),
        (message("You are a bird.", "system"), "unsupported"),
    ]
    for asked, code in wrong:
        assert error(told.say(asked))["code"] == code
    check(told.events)


def test_tools_are_refused_and_the_rest_holds(told: Told) -> None:
    new = told.say(update(instructions="Be brief.", tools=[{"type": "function", "name": "clock"}]))
    assert kinds(new) == ["error", "session.updated"] and error(new)["code"] == "tools_unsupported"
    session = one(new, "session.updated")["session"]
    assert session["instructions"] == "Be brief." and session["tools"] == []


def test_text_is_given_to_the_agent(told: Told) -> None:
    new = told.say(message("Say cheese."))
    assert starts(new) and done(new) == [("send_text", {"text": "Say cheese."})]
    assert "conversation.item.added" in kinds(new)
    deaf = Told(replace(DUPLEX, text_input=False))
    assert error(deaf.say(message("hello")))["code"] == "unsupported" and not starts(deaf.actions)


def test_a_role_is_changed_where_the_model_can(told: Told) -> None:
    ready(told)
    assert done(told.say(update(instructions="Be brief."))) == [
        ("update", {"prompt": "Be brief.", "keep_history": False})
    ]
    assert not done(told.say(update(instructions="Be brief.")))
    assert kinds(told.happen(Ready(9, 7))) == ["session.ready"], "the response stays open"
    fixed = ready(Told(Capabilities(full_duplex=True)))
    assert error(fixed.say(update(instructions="Be brief.")))["code"] == "persona_update_unsupported"
    assert error(fixed.say(update(audio={"output": {"voice": "one"}})))["code"] == "voice_update_unsupported"
    assert error(fixed.say({"type": "response.cancel"}))["code"] == "unsupported"
    assert fixed.machine.now.instructions is None


def test_the_user_is_told_of_and_written_down_where_somebody_listens(told: Told) -> None:
    ready(told)
    new = told.happen(UserStarted(5), UserStopped(20))
    assert kinds(new) == ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]
    writing = ready(Told(replace(DUPLEX, user_text=True)))
    new = writing.happen(UserStarted(5), UserStopped(20), UserText(21, "hello", True))
    assert kinds(new)[-1] == "conversation.item.input_audio_transcription.completed"
    assert "input_audio_buffer.committed" in kinds(new)
    check(writing.events)


def test_sound_in_another_format_from_now_on(told: Told) -> None:
    ready(told)
    told.frames(1)
    told.say(update(audio={"output": {"format": {"type": "audio/pcmu"}}}))
    sizes = [len(event["delta"]) for event in told.events if event["type"] == "response.output_audio.delta"]
    told.frames(10)
    later = [len(event["delta"]) for event in told.events if event["type"] == "response.output_audio.delta"][1:]
    assert sizes == [5120] and max(later) < 2000 and sum(later) * 3 / 4 > 640 * 8
    check(told.events)
