"""Sessions on real sockets: whole conversations, resuming, bad input, slow readers, full servers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from personaplex.by_turns import Call
from personaplex.server.realtime import routes
from personaplex.server.realtime.connection import Connection
from personaplex.server.realtime.live import Live
from personaplex.server.service import Backends, Service
from tests.cascade_engines import Engines, silence, speech
from tests.server.conftest import scripted_backends, serving, settings
from tests.server.realtime.caller import Caller, calling
from tests.server.realtime.conftest import SLOTS
from tests.server.realtime.told import check

LOUD = np.full(24_000, 0.25, np.float32)


def eventually(fact: Callable[[], object]) -> None:
    until_then = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < until_then
        time.sleep(0.01)


def follow(before: list[dict[str, object]], after: list[dict[str, object]]) -> None:
    """Both together are all that a session told, each once."""
    numbers = [event["server_event_seq"] for event in [*before, *after] if "server_event_seq" in event]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_spoken_question_is_understood_and_answered_and_written_down(
    address: str, engines: Engines, service: Service
) -> None:
    engines.recogniser.said = ["what time is it"]
    with calling(address) as caller:
        caller.say("session.update", session={"type": "realtime", "instructions": "Be brief.", "recording": True})
        caller.speak(np.concatenate([silence(0.4), speech(1.2), silence(1.0)]))
        made = caller.until("response.done")["response"]
        name = caller.session["id"]
    assert made["status"] == "completed" and made["output"][0]["content"][0]["transcript"].strip() == (
        "Good day. It is noon."
    )
    assert caller.of("conversation.item.input_audio_transcription.completed")[0]["transcript"] == "what time is it"
    assert 2 * 24_000 <= len(caller.sound) <= 2.1 * 24_000, "five words of 0.2 s"
    assert len({event["event_id"] for event in caller.told}) == len(caller.told)
    follow([], caller.told)
    check(caller.told)
    assert engines.thinker.asked[0][0].content.startswith("Be brief.")
    eventually(lambda: service.in_use() == 0)

    async def kept() -> list[tuple[str, str]]:
        return [(turn.role, turn.text) for turn in await service.history.turns(name)]

    eventually(lambda: len(asyncio.run(kept())) == 2)
    assert asyncio.run(kept()) == [("user", "what time is it"), ("assistant", "Good day. It is noon.")]
    recorded = asyncio.run(service.history.find(name))
    assert recorded is not None and recorded.recorded > 3.0 and recorded.kind == "realtime"


def test_a_written_question_is_answered_without_a_microphone_and_tools_are_called(
    address: str, engines: Engines
) -> None:
    engines.thinker.tokens = [Call("call_1", "clock", "{}"), "It is noon."]
    clock = {"type": "function", "name": "clock", "parameters": {"type": "object"}}
    with calling(address) as caller:
        caller.say("session.update", session={"type": "realtime", "tools": [clock]})
        caller.type("what time is it?")
        called = caller.until("response.done")["response"]["output"]
        assert [(item["type"], item["name"]) for item in called] == [("function_call", "clock")]
        result = {"type": "function_call_output", "call_id": called[0]["call_id"], "output": "12:00"}
        caller.say("conversation.item.create", item=result)
        caller.say("response.create")
        made = caller.until("response.done")["response"]
    assert made["output"][0]["content"][0]["transcript"].strip() == "It is noon."
    assert [message.role for message in engines.thinker.asked[-1]] == ["system", "user", "assistant", "tool"]
    check(caller.told)


def test_by_hand_what_was_committed_is_answered_when_asked(address: str, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    with calling(address) as caller:
        caller.say("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        caller.speak(np.concatenate([speech(0.6), silence(1.0), speech(0.63)]))
        caller.say("input_audio_buffer.commit")
        caller.until("input_audio_buffer.committed")
        caller.say("response.create")
        made = caller.until("response.done")["response"]
    assert made["status"] == "completed" and not caller.of("input_audio_buffer.speech_started")
    assert engines.thinker.asked[0][-1].content == "what time is it"
    assert engines.recogniser.n_samples[0] >= 2.23 * 16_000, "all of it was heard"
    check(caller.told)


def test_who_cancels_hears_no_more_and_what_was_heard_is_remembered(address: str, engines: Engines) -> None:
    engines.thinker.tokens = ["one two three four five six seven eight nine ten. "]
    with calling(address) as caller:
        caller.type("count")
        for _ in range(3):
            caller.until("response.output_audio_transcript.delta")
        caller.say("response.cancel")
        made = caller.until("response.done")["response"]
        assert made["status"] == "cancelled" and made["output"][0]["status"] == "incomplete"
        item, text = made["output"][0]["id"], made["output"][0]["content"][0]["transcript"].split()
        assert 3 <= len(text) < 10
        caller.say("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=450)
        caller.until("conversation.item.truncated")
        caller.type("go on")
        caller.until("response.created")
    assert [m.content for m in engines.thinker.asked[1][1:]] == ["count", "one two", "go on"]
    check(caller.told)


def test_voice_and_role_change_and_what_was_said_is_remembered(address: str, engines: Engines) -> None:
    engines.thinker.tokens = ["Noon."]
    with calling(address) as caller:
        caller.type("hello")
        caller.until("response.done")
        caller.say("session.update", session={"type": "realtime", "audio": {"output": {"voice": "two"}}})
        caller.type("again")
        caller.until("response.done")
        caller.say("session.update", session={"type": "realtime", "instructions": "You are Max."})
        caller.type("and again")
        caller.until("response.done")
        caller.say("session.update", session={"type": "realtime", "audio": {"output": {"voice": "nobody"}}})
        assert "there are one, two" in caller.until("error")["error"]["message"]
    assert [voice for _, voice in engines.synthesiser.said] == ["one", "two", "two"]
    asked = engines.thinker.asked[-1]
    assert asked[0].content.startswith("You are Max.")
    assert [message.content for message in asked[1:]] == ["hello", "Noon.", "again", "Noon.", "and again"]


def test_the_user_interrupts(address: str, engines: Engines) -> None:
    engines.thinker.tokens = ["one two three four five six seven eight nine ten. "] * 3
    engines.recogniser.said = ["no I meant tomorrow"]
    with calling(address) as caller:
        caller.type("count")
        caller.until("response.output_audio_transcript.delta")
        caller.speak(np.concatenate([speech(1.5), silence(0.8)]))
        made = caller.until("response.done")["response"]
        assert made["status"] == "cancelled" and made["status_details"]["reason"] == "turn_detected"
        caller.until("response.created")
    assert engines.thinker.asked[1][-1].content == "no I meant tomorrow"


def test_a_duplex_model_answers_every_frame_of_one_response(address: str) -> None:
    with calling(address, "mode=duplex") as caller:
        assert caller.session["mode"] == "duplex"
        caller.speak(LOUD[: 1920 * 12])
        while len(caller.sound) < 2 * 1920 * 12:
            caller.next()
        caller.say("session.close")
        assert caller.end() == (1000, "client_close")
    assert np.abs(np.frombuffer(caller.sound, "<i2") / 32768 - 0.25).max() < 0.001, "the script repeats the user"
    assert [event["delta"] for event in caller.of("response.output_audio_transcript.delta")] == ["hello ", "there "]
    assert [event["type"] for event in caller.told[-2:]] == ["response.done", "session.closed"]
    check(caller.told)


def resume(caller: Caller, before: Caller) -> dict[str, object]:
    caller.say(
        "session.resume",
        resume_token=before.session["resume_token"],
        server_event_seq=before.told[-1]["server_event_seq"],
    )
    return caller.until("session.resumed")


def test_a_cut_line_is_taken_up_where_it_was(address: str, engines: Engines, service: Service) -> None:
    """Nothing that was sent is lost, and nothing that was told; what was said before is remembered."""
    engines.recogniser.said = ["what time is it"]
    with calling(address) as before:
        before.speak(np.concatenate([silence(0.2), speech(1.2)]))
        before.until("conversation.item.input_audio_transcription.delta")
        before.cut()
    with calling(address) as after:
        about = resume(after, before)
        assert service.in_use() == 1 and about["session_id"] == before.session["id"]
        told = len(after.told)
        after.speak(silence(1.0))
        made = after.until("response.done")["response"]
        assert made["status"] == "completed"
    follow(before.told, after.told[told:])
    check([*before.told, *after.told[told:]])
    assert engines.recogniser.n_samples[0] >= 1.2 * 16_000


def test_a_line_that_is_cut_while_the_agent_speaks_loses_no_sound(address: str, service: Service) -> None:
    with calling(address, "mode=duplex") as before:
        before.speak(LOUD)
        before.speak(LOUD / 2)
        for _ in range(5):
            before.until("response.output_audio.delta")
        before.cut()
    with calling(address, "mode=duplex") as after:
        resume(after, before)
        after.speak(LOUD / 4)
        while len(before.sound) + len(after.sound) < 3 * 2 * 24_000 // 3840 * 3840:
            after.next()
    told = [event for event in after.told if event["type"] not in ("session.created", "session.resumed")]
    follow(before.told, told)
    sound = np.frombuffer(before.sound + after.sound, "<i2").astype(float) / 32768
    assert np.allclose(sound, np.repeat([0.25, 0.125, 0.0625], 24_000)[: len(sound)], atol=0.001)


def test_what_ended_while_a_client_was_away_is_told_when_it_comes_back(
    address: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed, detach = threading.Event(), Live.detach

    def notice(live: Live, connection: Connection, *, ends: bool) -> None:
        detach(live, connection, ends=ends)
        noticed.set()

    monkeypatch.setattr(Live, "detach", notice)
    with calling(address, "mode=duplex") as caller:
        caller.say("session.start")
        caller.until("response.created")
        caller.cut()
        assert noticed.wait(10)
        service.close()
        eventually(lambda: not service.in_use())
        with calling(address, "mode=duplex") as back:
            resume(back, caller)
            assert back.until("response.done")["response"]["status"] == "cancelled"
            assert back.until("session.closed")["reason"] == "shutdown"
            assert back.end()[0] == 1012
        with calling(address, "mode=duplex") as late:  # told once, it is gone
            late.say("session.resume", resume_token=caller.session["resume_token"], server_event_seq=0)
            assert late.until("error")["error"]["code"] == "session_resume_expired"


def test_another_connection_takes_a_session_over_from_one_that_is_half_open(address: str) -> None:
    with calling(address, "mode=duplex") as before, calling(address, "mode=duplex") as after:
        before.speak(LOUD[:1920])
        before.until("response.output_audio.delta")
        resume(after, before)
        assert before.end()[0] == 1000
        after.speak(LOUD[:1920])
        after.until("response.output_audio.delta")


def test_what_cannot_be_resumed_is_refused_and_the_new_session_stands(address: str) -> None:
    with calling(address, "mode=duplex") as caller:
        for seq in (0, 10**9):
            caller.say("session.resume", resume_token="nobody's", server_event_seq=seq)
            assert caller.until("error")["error"]["code"] == "session_resume_expired"
        caller.speak(LOUD[:1920])
        caller.until("response.output_audio.delta")
    with calling(address, "mode=duplex") as before:
        before.speak(LOUD[:1920])
        before.until("response.output_audio.delta")
        before.cut()
    with calling(address, "mode=duplex") as after:
        after.say("session.resume", resume_token=before.session["resume_token"], server_event_seq=10**9)
        assert after.until("error")["error"]["code"] == "session_resync_required"


def test_who_does_not_come_back_is_waited_for_as_long_as_was_said_and_who_leaves_is_not(
    scripted_service: Callable[..., Service],
) -> None:
    made = scripted_service(settings=settings(resume_seconds=0.2))
    with serving(made) as http:
        with calling(http.replace("http", "ws"), "mode=duplex") as caller:
            caller.speak(LOUD[:1920])
            caller.until("response.output_audio.delta")
            assert made.in_use() == 1
            caller.cut()
        eventually(lambda: made.in_use() == 0)
        with calling(http.replace("http", "ws"), "mode=duplex") as late:
            late.say("session.resume", resume_token=caller.session["resume_token"], server_event_seq=1)
            assert late.until("error")["error"]["code"] == "session_resume_expired"
    made = scripted_service(settings=settings(resume_seconds=1000.0))
    with serving(made) as http:
        with calling(http.replace("http", "ws"), "mode=duplex") as caller:
            caller.speak(LOUD[:1920])
            caller.until("response.output_audio.delta")
        eventually(lambda: made.in_use() == 0)


def test_a_full_server_refuses_in_words_whoever_begins_and_nobody_else(address: str, service: Service) -> None:
    callers = [calling(address, "mode=duplex") for _ in range(SLOTS + 1)]
    opened = [caller.__enter__() for caller in callers]
    assert service.in_use() == 0, "who only connects takes no slot"
    for caller in opened:
        caller.speak(LOUD[:1920])
    ends = []
    for caller in opened:
        while caller.told[-1]["type"] not in ("response.output_audio.delta", "error"):
            caller.next()
        ends.append(caller.told[-1])
    (refused,) = [event for event in ends if event["type"] == "error"]
    assert refused["error"]["type"] == "rate_limit_error" and refused["error"]["code"] == "resource_exhausted"
    assert f"{SLOTS} of {SLOTS}" in refused["error"]["message"]
    assert opened[ends.index(refused)].end()[0] == 1013
    for context in callers:
        context.__exit__(None, None, None)
    eventually(lambda: service.in_use() == 0)


def test_who_is_only_connected_takes_room_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_SESSIONS", 2)
    with calling(address) as first, calling(address) as second:
        with calling(address) as third:
            assert third.told[0]["error"]["code"] == "resource_exhausted" and third.end()[0] == 1013
        for caller in (first, second):
            caller.say("session.start")
            caller.until("session.ready")


def test_a_mode_that_is_not_served_is_refused_in_words(address: str) -> None:
    for query in ("mode=telepathy", "mode="):
        with calling(address, query) as caller:
            assert "it has duplex and cascade" in caller.told[0]["error"]["message"]
            assert caller.end()[0] == 1008


def test_the_name_of_a_model_says_what_is_talked_with(address: str) -> None:
    for model in ("", "model=scripted", "model=personaplex", "model=cascade", "model=gpt-realtime"):
        with calling(address, model, subprotocols=["realtime"]) as caller:
            mode = "cascade" if model in ("model=cascade", "model=gpt-realtime") else "duplex"
            assert caller.session["mode"] == mode and caller.socket.subprotocol == "realtime"


def test_bad_input_is_answered_and_the_session_goes_on(address: str, service: Service) -> None:
    with calling(address, "mode=duplex") as caller:
        for wrong in ("{", "[]", "7", '{"type": "x"}', "\x00", '{"type": "session.update", "session": 7}'):
            caller.socket.send(wrong)
            caller.until("error")
        caller.socket.send(b"\x01OggS")
        assert caller.until("error")["error"]["code"] == "binary_not_supported"
        for _ in range(10_000):
            caller.say("input_audio_buffer.append", audio="")
        caller.speak(LOUD[:1920])
        caller.until("response.output_audio.delta")
        assert len(caller.of("error")) == 7
    with calling(address, "mode=duplex") as caller, pytest.raises(ConnectionClosed):
        caller.socket.send(json.dumps({"type": "session.update", "event_id": "a" * (2 << 20)}))
        caller.end()
        raise ConnectionClosed(None, None)
    with calling(address, "mode=duplex") as caller:
        caller.speak(LOUD[:1920])
        caller.until("response.output_audio.delta")
    eventually(lambda: service.in_use() == 0)


def test_ten_thousand_bytes_one_by_one_are_the_same_sound(address: str) -> None:
    data = (LOUD[:1920] * 32767).astype("<i2").tobytes()
    with calling(address, "mode=duplex") as caller:
        for byte in data:
            caller.say("input_audio_buffer.append", audio=b64encode(bytes([byte])).decode())
        caller.until("response.output_audio.delta")
    assert caller.sound == data


def test_who_does_not_read_is_let_go_and_holds_nobody_up(
    scripted_service: Callable[..., Service],
) -> None:
    made = scripted_service(settings=settings(resume_seconds=0.0, unsent_seconds=0.5))
    with serving(made) as http:
        address = http.replace("http", "ws")
        with calling(address, "mode=duplex", max_queue=1) as slow, calling(address, "mode=duplex") as other:
            stop = threading.Event()

            def flood() -> None:
                with suppress(ConnectionClosed, OSError):
                    while not stop.is_set():
                        slow.speak(LOUD)

            flooding = threading.Thread(target=flood)
            flooding.start()
            counted = "personaplex_slow_readers_total 1.0"
            eventually(lambda: counted in made.metrics.page().decode())
            eventually(lambda: made.in_use() == 0)
            other.speak(LOUD[:1920])
            other.until("response.output_audio.delta")
            stop.set()
            slow.cut()
            flooding.join()


def test_who_sends_nothing_for_long_is_let_go_in_words(scripted_service: Callable[..., Service]) -> None:
    made = scripted_service(settings=settings(idle_seconds=0.2))
    with serving(made) as http, calling(http.replace("http", "ws"), "mode=duplex") as caller:
        caller.speak(LOUD[:1920])
        assert caller.end()[0] == 1008
        assert "nothing came for 0.2 s" in caller.of("error")[0]["error"]["message"]
        assert made.in_use() == 0


def test_the_end_of_the_server_is_told(address: str, service: Service) -> None:
    with calling(address, "mode=duplex") as caller:
        caller.speak(LOUD[:1920])
        caller.until("response.output_audio.delta")
        service.close()
        assert caller.end() == (1012, "shutdown")
        assert caller.told[-1]["reason"] == "shutdown"


def test_a_half_open_connection_is_noticed_and_its_slot_free_after_the_grace_time(
    scripted_service: Callable[..., Service],
) -> None:
    made = scripted_service(settings=settings(silent_seconds=0.4, resume_seconds=0.2))
    with serving(made) as http:
        host, port = http.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as dead:  # which answers no ping
            asked = [
                "GET /v1/realtime?mode=duplex HTTP/1.1",
                f"Host: {host}",
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Key: {b64encode(bytes(16)).decode()}",
                "Sec-WebSocket-Version: 13",
            ]
            dead.sendall("\r\n".join([*asked, "", ""]).encode())
            assert b" 101 " in dead.recv(100)
            start = b'{"type":"session.start"}'
            dead.sendall(bytes([0x81, 0x80 | len(start), 0, 0, 0, 0]) + start)
            eventually(lambda: made.in_use() == 1)
            eventually(lambda: made.in_use() == 0)


def test_who_calls_too_early_or_too_late_is_told_so() -> None:
    go = threading.Event()

    def load() -> Backends:
        go.wait(30)
        return scripted_backends()

    made = Service(settings(), load)
    with serving(made) as http:
        address = http.replace("http", "ws")
        with calling(address) as early:
            assert "loading its model" in early.told[0]["error"]["message"] and early.end()[0] == 1013
        go.set()
        made.loaded.result(30)
        with calling(address, "mode=duplex") as last:
            made.begin_drain()
            last.speak(LOUD[:1920])
            assert last.end()[0] == 1013
            assert "about to stop" in last.of("error")[0]["error"]["message"]
