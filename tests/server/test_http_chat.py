"""The seeds' API: personas, chat, speech, sessions, events and the WebSocket, with an answer that follows a script."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from websockets.sync.client import ClientConnection, connect

from personaplex.audio import read_audio
from personaplex.errors import EngineError
from personaplex.server.http import chat_socket, chats
from tests.server.cascade import PARTS, Shared, Stage, open_client, shared, stage, until
from tests.server.conftest import scripted_backends, serving, settings

__all__ = ["shared", "stage"]

ANSWER = "Good day. It is noon."
SOCKET = "ws://127.0.0.1:8998/ws/chat"


@pytest.fixture
def http(stage: Stage) -> Iterator[TestClient]:
    with stage.client() as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def read(socket: WebSocketTestSession | ClientConnection, until: str) -> list[dict[str, Any]]:
    """What comes, up to the first of type `until`."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != until:
        found.append(socket.receive_json() if isinstance(socket, WebSocketTestSession) else json.loads(socket.recv(10)))
    return found


def test_personas_with_what_the_cascade_makes_of_them(http: TestClient) -> None:
    found = http.get("/personas").json()
    assert found["default"] == "assistant"
    names = {persona["name"]: persona for persona in found["personas"]}
    assert {"claudia", "aria", "sage"} <= set(names)
    assert names["aria"]["temperature"] == 0.3 and names["aria"]["max_tokens"] == 60
    assert names["aria"]["model"] == PARTS.llm


def test_chat_without_a_session_forgets(http: TestClient, stage: Stage) -> None:
    found = http.post("/chat", json={"message": "What time is it?", "persona": "sage"}).json()
    assert found["response"] == ANSWER and found["persona"] == "sage"
    assert found["session_id"] is None and not found["kept"]
    assert found["latency_ms"] >= found["first_token_ms"] > 0
    http.post("/chat", json={"text": "And now?"})
    assert [message.content for message in stage.engines.thinker.asked[1][1:]] == ["And now?"]
    assert http.get("/v1/history").json()["data"] == []


def test_of_a_long_conversation_the_newest_is_held_and_the_history_has_all(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chats, "MOST_MESSAGES", 4)
    id = http.post("/session", json={}).json()["session_id"]
    for n in range(5):
        http.post("/chat", json={"message": str(n), "session_id": id})
    with http.websocket_connect(f"{SOCKET}?session_id={id}") as socket:
        said = [message["content"] for message in read(socket, "session")[0]["messages"]]
    assert said == ["3", ANSWER, "4", ANSWER]
    assert len(http.get(f"/v1/history/{id}").json()["messages"]) == 10


def test_a_session_remembers_and_the_history_has_it(http: TestClient, stage: Stage) -> None:
    begun = http.post("/session", json={"persona": "aria", "title": "Noon"})
    assert begun.status_code == 201
    id = begun.json()["session_id"]
    assert begun.json()["persona"] == "aria" and begun.json()["title"] == "Noon"
    for message in ("What time is it?", "And now?"):
        found = http.post("/chat", json={"message": message, "session_id": id}).json()
        assert found["session_id"] == id and found["kept"] and found["persona"] == "aria"
    asked = stage.engines.thinker.asked[1]
    assert [message.content for message in asked[1:]] == ["What time is it?", ANSWER, "And now?"]
    assert "Aria" in asked[0].content
    listed = http.get("/v1/history").json()
    assert not listed["lasting"]
    assert [(one["id"], one["title"], one["turns"], one["kind"]) for one in listed["data"]] == [(id, "Noon", 4, "chat")]
    said = http.get(f"/v1/history/{id}").json()["messages"]
    assert [(turn["role"], turn["content"], turn["persona"]) for turn in said[:2]] == [
        ("user", "What time is it?", None),
        ("assistant", ANSWER, "aria"),
    ]


def test_another_persona_takes_a_session_over(http: TestClient, stage: Stage) -> None:
    id = http.post("/session").json()["session_id"]
    assert http.post("/chat", json={"message": "Hi", "session_id": id, "persona": "sage"}).json()["persona"] == "sage"
    assert http.post("/chat", json={"message": "Hi", "session_id": id}).json()["persona"] == "sage"
    assert "Sage" in stage.engines.thinker.asked[1][0].content
    assert http.get(f"/v1/history/{id}").json()["session"]["persona"] == "sage"


def test_without_a_language_model_the_answer_says_so(stage: Stage) -> None:
    from personaplex.server.service import Service

    with open_client(Service.of(scripted_backends(), settings())) as http:
        found = http.post("/chat", json={"message": "What are your opening hours?"}).json()
        assert "five" in found["response"] and "no language model" in found["model"]
        assert all("no language model" in one["model"] for one in http.get("/personas").json()["personas"])


def test_tokens_as_events(http: TestClient) -> None:
    answer = http.post("/chat/stream", json={"message": "What time is it?"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.text)
    assert [one.get("token") for one in found] == ["Good day. ", "It is ", "noon.", None]
    assert found[-1]["type"] == "done" and found[-1]["response"] == ANSWER


def test_what_fails_at_once_has_a_status_and_what_fails_midway_an_event(http: TestClient, stage: Stage) -> None:
    stage.engines.thinker.tokens = [EngineError("no chat server answers")]
    for path in ("/chat", "/chat/stream"):
        failed = http.post(path, json={"message": "Hello"})
        assert failed.status_code == 502
        assert failed.json()["error"] == {
            "type": "server_error",
            "code": "engine_failed",
            "message": "no chat server answers",
            "param": None,
        }
    stage.engines.thinker.tokens = ["Well, ", EngineError("it broke off")]
    id = http.post("/session").json()["session_id"]
    found = events(http.post("/chat/stream", json={"message": "Hello", "session_id": id}).text)
    assert [one["type"] for one in found] == ["token", "error"]
    assert found[1]["error"]["message"] == "it broke off"
    said = http.get(f"/v1/history/{id}").json()["messages"]
    assert [turn["content"] for turn in said] == ["Hello", "Well,"]  # what was said is kept


def test_an_engine_that_is_not_ours_tells_nothing_of_our_insides(http: TestClient, stage: Stage) -> None:
    stage.engines.thinker.tokens = [KeyError("/secret/path")]
    failed = http.post("/chat", json={"message": "Hello"})
    assert failed.status_code == 500 and "secret" not in failed.text


def test_speak_is_a_wav_file_in_the_personas_voice(http: TestClient, stage: Stage) -> None:
    spoken = http.post("/speak", json={"text": "Good day. It is noon.", "voice": "two"})
    assert spoken.headers["content-type"] == "audio/wav"
    assert int.from_bytes(spoken.content[40:44], "little") == len(spoken.content) - 44
    assert len(read_audio(io.BytesIO(spoken.content))) == pytest.approx(5 * 0.2 * 24_000, abs=50)
    assert stage.engines.synthesiser.said == [("Good day.", "two"), ("It is noon.", "two")]
    assert stage.engines.synthesiser.n_open == 0
    http.post("/speak", json={"text": "Hello", "persona": "sage"})
    assert stage.engines.synthesiser.said[-1] == ("Hello", None)  # Sage's voice is of another synthesiser
    stage.engines.synthesiser.said.clear()
    for wrong in ({"voice": "../../etc/passwd"}, {"voice": "NATF0"}, {"persona": "nobody"}):
        refused = http.post("/speak", json={"text": "Hello", **wrong})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "unknown_persona_or_voice"
    assert stage.engines.synthesiser.said == []
    failed = http.post("/speak", json={"text": "Well. unsayable."})
    assert failed.status_code == 502 and "cannot say" in failed.json()["error"]["message"]
    assert http.post("/speak", json={"text": "..."}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        '{"message": NaN}',
        '{"message": ""}',
        '{"message": " \\n"}',
        '{"message": "\\ud800"}',
        '{"message": 5}',
        '{"message": ["a"]}',
        "{}",
        "[]",
        "null",
        "",
        "{",
        "[" * 100_000,
        '{"message": "' + "x" * 20_001 + '"}',
        '{"message": "x", "session_id": "../x"}',
        '{"message": "x", "session_id": ' + "9" * 5000 + "}",
        '{"message": "x", "persona": "' + "y" * 300 + '"}',
        '{"message": "x", "persona": "sage\' OR 1=1 --"}',
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_message_is_refused_in_openais_shape(shared: Shared, body: str) -> None:
    n_asked = len(shared.engines.thinker.asked)
    for path in ("/chat", "/chat/stream"):
        refused = shared.http.post(path, content=body, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        about = refused.json()["error"]
        assert about["type"] == "invalid_request_error" and about["message"] and set(about) >= {"code", "param"}
        assert len(refused.content) < 1000
    assert len(shared.engines.thinker.asked) == n_asked


def test_an_unknown_session_is_not_found(http: TestClient) -> None:
    for path in ("/chat", "/chat/stream"):
        assert http.post(path, json={"message": "x", "session_id": "nobody"}).status_code == 404


def test_two_questions_at_once_in_a_session_are_a_conflict(stage: Stage) -> None:
    stage.engines.thinker.tokens = ["Well, ", 30.0, "never"]
    with serving(stage.service()) as address, connect(f"ws{address[4:]}/ws/chat") as socket:
        read(socket, "session")
        socket.send(json.dumps({"type": "message", "message": "Hello"}))
        read(socket, "token")
        socket.send(json.dumps({"type": "message", "message": "Hello?"}))
        assert read(socket, "error")[-1]["error"]["code"] == "conversation_in_use"
        socket.send(json.dumps({"type": "cancel"}))
        done = read(socket, "done")[-1]
        assert done["cancelled"] and done["response"] == "Well,"


def test_the_socket_tells_tokens_and_knows_ping_switch_reset(http: TestClient, stage: Stage) -> None:
    with http.websocket_connect(f"{SOCKET}?persona=aria") as socket:
        (greeting,) = read(socket, "session")
        assert greeting["persona"] == "aria" and greeting["messages"] == [] and not greeting["resumed"]
        assert greeting["model"] == PARTS.llm and greeting["grace_seconds"] == 30
        socket.send_json({"type": "ping", "id": 7})
        assert read(socket, "pong") == [{"type": "pong", "id": 7}]
        socket.send_json({"type": "message", "message": "What time is it?"})
        found = read(socket, "done")
        assert [one.get("token") for one in found] == ["Good day. ", "It is ", "noon.", None]
        assert [one["seq"] for one in found] == list(range(greeting["seq"] + 1, greeting["seq"] + 5))
        socket.send_json({"type": "switch_persona", "persona": "sage"})
        assert read(socket, "persona_switched")[-1]["persona"] == "sage"
        socket.send_json({"message": "And now?"})  # without a type it is a message
        assert read(socket, "done")[-1]["persona"] == "sage"
        asked = stage.engines.thinker.asked[-1]
        assert "Sage" in asked[0].content and len(asked) == 4  # the history stays
        socket.send_json({"type": "reset"})
        read(socket, "reset")
        socket.send_json({"type": "message", "content": "And then?"})
        read(socket, "done")
        assert len(stage.engines.thinker.asked[-1]) == 2
        said = http.get(f"/v1/history/{greeting['session_id']}").json()["messages"]
        assert [turn["content"] for turn in said] == ["And then?", ANSWER]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("no json", "invalid_value"),
        ("[1]", "invalid_value"),
        ("[" * 100_000, "invalid_value"),
        ("{}", "invalid_value"),
        ('{"type": "message", "message": NaN}', "invalid_value"),
        ('{"type": "message", "message": "' + "x" * 20_001 + '"}', "too_large"),
        ('{"type": "dance"}', "invalid_value"),
        ('{"type": ["message"]}', "invalid_value"),
        ('{"type": "switch_persona"}', "invalid_value"),
        ('{"type": "switch_persona", "persona": "nobody"}', "unknown_persona_or_voice"),
        (b"\x00\x01", "invalid_value"),
    ],
    ids=lambda sent: str(sent)[:30],
)
def test_mistakes_are_told_and_the_connection_goes_on(shared: Shared, sent: str | bytes, code: str) -> None:
    with shared.http.websocket_connect(SOCKET) as socket:
        read(socket, "session")
        if isinstance(sent, bytes):
            socket.send_bytes(sent)
        else:
            socket.send_text(sent)
        assert read(socket, "error")[-1]["error"]["code"] == code
        socket.send_json({"type": "message", "message": "Still there?"})
        assert read(socket, "done")[-1]["response"] == ANSWER


def test_a_half_of_a_character_is_no_reason_to_fail(http: TestClient) -> None:
    with http.websocket_connect(SOCKET) as socket:
        id = read(socket, "session")[-1]["session_id"]
        socket.send_text('{"type": "message", "message": "\\ud800 \\u0000 <script>"}')
        read(socket, "done")
        said = http.get(f"/v1/history/{id}").json()["messages"]
        assert said[0]["content"] == "? \ufffd <script>"


@pytest.mark.parametrize("query", ["session_id=nobody", "session_id=../x", "persona=nobody", "session_id=a&after=-1"])
def test_who_names_what_is_not_there_is_told_and_disconnected(shared: Shared, query: str) -> None:
    with shared.http.websocket_connect(f"{SOCKET}?{query}") as socket:
        assert read(socket, "error")[-1]["error"]["message"]
        assert socket.receive()["code"] == 1008


def test_a_broken_connection_goes_on_where_it_was(stage: Stage) -> None:
    """The answer is made meanwhile, and nothing of it is lost or told twice."""
    stage.engines.thinker.tokens = [str(n) + " " if n % 2 else 0.02 for n in range(40)]
    with serving(stage.service()) as address:
        url = f"ws{address[4:]}/ws/chat"
        with connect(url) as first:
            greeting = read(first, "session")[-1]
            first.send(json.dumps({"type": "message", "message": "Count."}))
            heard = [read(first, "token")[-1] for _ in range(3)]
            first.socket.close()  # no goodbye
        with connect(f"{url}?session_id={greeting['session_id']}&after={heard[-1]['seq']}") as second:
            again = read(second, "session")[-1]
            assert again["resumed"] and again["messages"] == [] and again["seq"] == heard[-1]["seq"]
            rest = read(second, "done")
    tokens = [one["token"] for one in heard + rest[:-1]]
    assert tokens == [f"{n} " for n in range(1, 40, 2)]
    assert [one["seq"] for one in heard + rest] == list(range(greeting["seq"] + 1, greeting["seq"] + 22))
    assert stage.engines.thinker.n_open == 0


def test_who_does_not_come_back_in_time_finds_the_conversation_in_the_history(stage: Stage) -> None:
    stage.engines.thinker.tokens = ["Well, ", 30.0, "never"]
    with serving(stage.service(settings(resume_seconds=0.0))) as address:
        url = f"ws{address[4:]}/ws/chat"
        with connect(url) as first:
            greeting = read(first, "session")[-1]
            first.send(json.dumps({"type": "message", "message": "Hello."}))
            seq = read(first, "token")[-1]["seq"]
        until(lambda: stage.engines.thinker.n_open == 0)
        with connect(f"{url}?session_id={greeting['session_id']}&after={seq}") as second:
            again = read(second, "session")[-1]
        assert not again["resumed"]
        assert [message["content"] for message in again["messages"]] == ["Hello.", "Well,"]


def test_who_hangs_up_on_events_ends_the_answer(stage: Stage) -> None:
    from urllib.request import Request, urlopen

    stage.engines.thinker.tokens = ["Well, ", 30.0, "never"]
    with serving(stage.service()) as address:
        with urlopen(Request(f"{address}/session", method="POST")) as begun:
            id = json.load(begun)["session_id"]
        about = {"message": "Hello", "session_id": id}
        asking = Request(
            f"{address}/chat/stream", json.dumps(about).encode(), {"content-type": "application/json"}, method="POST"
        )
        with urlopen(asking) as answer:
            assert b"Well" in answer.readline()

        def said() -> list[str]:
            with urlopen(f"{address}/v1/history/{id}") as fetched:
                return [turn["content"] for turn in json.load(fetched)["messages"]]

        until(lambda: said() == ["Hello", "Well,"])
        assert stage.engines.thinker.n_open == 0


def test_ten_thousand_tiny_messages_are_answered_one_by_one(stage: Stage) -> None:
    with serving(stage.service()) as address, connect(f"ws{address[4:]}/ws/chat") as socket:
        read(socket, "session")
        for n in range(0, 10_000, 100):
            for _ in range(100):
                socket.send('{"type": "ping"}' if n % 200 else "x")
            for _ in range(100):
                assert json.loads(socket.recv(10))["type"] == ("pong" if n % 200 else "error")
        socket.send('{"message": "Still there?"}')
        assert read(socket, "done")[-1]["response"] == ANSWER


def test_who_reads_nothing_is_disconnected_and_the_conversation_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_socket, "UNREAD_SECONDS", 0.2)
    stage.engines.thinker.tokens = ["x" * 100_000] * 150
    service = stage.service()
    with serving(service) as address:
        url = f"ws{address[4:]}/ws/chat"
        with connect(url, max_size=None, max_queue=1, close_timeout=0.1) as stuck:
            id = read(stuck, "session")[-1]["session_id"]
            stuck.send('{"message": "Talk."}')
            with connect(f"{url}?session_id={id}", max_size=None) as other:
                read(other, "session")
                assert read(other, "done")[-1]["kept"]  # nobody waits for a slow reader
            until(lambda: service.metrics.slow_readers._value.get() == 1)


def test_so_many_connections_and_no_more(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_socket, "MOST_SOCKETS", 1)
    with http.websocket_connect(SOCKET) as first:
        read(first, "session")
        with http.websocket_connect(SOCKET) as second:
            assert read(second, "error")[-1]["error"]["code"] == "resource_exhausted"
            assert second.receive()["code"] == 1013
        first.send_json({"type": "ping"})
        read(first, "pong")


def test_conversations_that_nobody_is_connected_to_make_room(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chats, "MOST_CHATS", 2)
    ids = [http.post("/session").json()["session_id"] for _ in range(4)]
    found = http.post("/chat", json={"message": "Hello", "session_id": ids[0]})  # from the history
    assert found.json()["response"] == ANSWER
    with http.websocket_connect(SOCKET) as first, http.websocket_connect(SOCKET) as second:
        read(first, "session")
        read(second, "session")
        with http.websocket_connect(SOCKET) as third:
            assert read(third, "error")[-1]["error"]["code"] == "resource_exhausted"


def test_a_server_that_is_about_to_stop_takes_no_new_messages(stage: Stage) -> None:
    service = stage.service()
    with open_client(service) as http:
        service.begin_drain()
        assert http.post("/chat", json={"message": "Hello"}).status_code == 503
        with http.websocket_connect(SOCKET) as socket:
            assert read(socket, "error")[-1]["error"]["code"] == "unavailable"


def test_a_reader_who_is_too_far_behind_is_told(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    monkeypatch.setattr(chats, "MOST_EVENTS", 3)
    stage.engines.thinker.tokens = ["a ", "b ", "c ", "d ", "e "]
    with stage.client() as http, http.websocket_connect(SOCKET) as socket:
        greeting = read(socket, "session")[-1]
        assert http.post("/chat", json={"message": "Hi", "session_id": greeting["session_id"]}).status_code in (
            200,
            409,
        )
        with http.websocket_connect(f"{SOCKET}?session_id={greeting['session_id']}&after={greeting['seq']}") as late:
            again = read(late, "session")[-1]
            assert not again["resumed"] and len(again["messages"]) == 2  # all of it instead of the events


def test_synthesis_that_fails_midway_breaks_the_response_off(stage: Stage) -> None:
    """Better no end than one that looks like the whole."""
    import http.client
    from urllib.request import Request, urlopen

    with serving(stage.service()) as address:
        about = {"input": "One two three. unsayable.", "response_format": "pcm"}
        asking = Request(
            f"{address}/v1/audio/speech",
            json.dumps(about).encode(),
            {"content-type": "application/json"},
            method="POST",
        )
        with urlopen(asking) as answer, pytest.raises(http.client.IncompleteRead):
            answer.read()
