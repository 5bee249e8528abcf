"""`/v1/history`, `/docs` and the description of the routes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from personaplex.server.app import create_app
from personaplex.server.http.manual import POLICY
from tests.server.cascade import Shared, Stage, shared, stage
from tests.server.conftest import settings

__all__ = ["shared", "stage"]

HOSTILE = "'; DROP TABLE turns; -- <script>alert(1)</script> \U0001f600"


def chat(http: TestClient, message: str = HOSTILE, title: str | None = HOSTILE) -> str:
    id: str = http.post("/session", json={"title": title, "persona": "sage"}).json()["session_id"]
    assert http.post("/chat", json={"message": message, "session_id": id}).status_code == 200
    return id


def test_sessions_are_listed_renamed_exported_and_deleted(stage: Stage) -> None:
    with stage.client() as http:
        first, second = chat(http), chat(http, "Hello", None)
        assert [one["id"] for one in http.get("/v1/history").json()["data"]] == [second, first]
        assert [one["id"] for one in http.get("/v1/history?limit=1&offset=1").json()["data"]] == [first]
        assert http.get("/v1/history?kind=realtime").json()["data"] == []
        renamed = http.patch(f"/v1/history/{second}", json={"title": HOSTILE})
        assert renamed.json()["title"] == HOSTILE
        assert http.patch(f"/v1/history/{second}", json={"title": None}).json()["title"] is None

        export = http.get(f"/v1/history/{first}/export")
        assert export.headers["content-type"] == "application/json"
        assert export.headers["content-disposition"] == f'attachment; filename="{first}.json"'
        assert export.headers["x-content-type-options"] == "nosniff"
        assert [turn["content"] for turn in json.loads(export.text)["messages"]] == [HOSTILE, "Good day. It is noon."]
        text = http.get(f"/v1/history/{first}/export?format=text").text
        assert text == f"user: {HOSTILE}\nsage: Good day. It is noon.\n"
        silent = http.get(f"/v1/history/{first}/export?format=wav")
        assert silent.status_code == 404 and "nothing was recorded" in silent.json()["error"]["message"]

        assert http.delete(f"/v1/history/{first}").json() == {"deleted": 1}
        for gone in (http.get(f"/v1/history/{first}"), http.delete(f"/v1/history/{first}")):
            assert gone.status_code == 404 and gone.json()["error"]["code"] == "not_found"
        assert http.post("/chat", json={"message": "x", "session_id": first}).status_code == 404
        assert http.delete("/v1/history").json() == {"deleted": 1}
        assert http.get("/v1/history").json()["data"] == []


@pytest.mark.parametrize("id", ["'%20OR%201=1%20--", "..%2f..%2fetc", "a%00b", "x" * 65, "%F0%9F%98%80"])
def test_names_that_are_no_ids(shared: Shared, id: str) -> None:
    http = shared.http
    kept = chat(http)
    for method, path in (("get", ""), ("get", "/export"), ("delete", ""), ("patch", "")):
        about = {"json": {"title": "x"}} if method == "patch" else {}
        refused = http.request(method, f"/v1/history/{id}{path}", **about)  # type: ignore[arg-type]
        assert refused.status_code in (400, 404)
    assert http.get(f"/v1/history/{kept}").status_code == 200


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "offset=-1", f"offset={1 << 70}", "kind=all", "limit=NaN"])
def test_pages_that_there_are_not(shared: Shared, query: str) -> None:
    http = shared.http
    assert http.get(f"/v1/history?{query}").status_code == 400


def test_deleting_a_conversation_ends_it(stage: Stage) -> None:
    stage.engines.thinker.tokens = ["Well, ", 30.0, "never"]
    with stage.client() as http, http.websocket_connect("ws://127.0.0.1:8998/ws/chat") as socket:
        id = socket.receive_json()["session_id"]
        socket.send_json({"message": "Hello"})
        assert socket.receive_json()["type"] == "token"
        assert http.delete(f"/v1/history/{id}").status_code == 200
        assert socket.receive_json()["type"] == "done"
        socket.send_json({"message": "Hello?"})
        assert socket.receive_json()["error"]["code"] == "conversation_ended"
        assert http.get("/v1/history").json()["data"] == []


def test_a_restarted_server_knows_what_was_said(stage: Stage, tmp_path: Path) -> None:
    own = settings(history=str(tmp_path / "history.sqlite"))
    with stage.client(own) as http:
        id = chat(http, "Remember me.")
        assert http.get("/v1/history").json()["lasting"]
    with stage.client(own) as http:
        assert [one["id"] for one in http.get("/v1/history").json()["data"]] == [id]
        found = http.post("/chat", json={"message": "Do you?", "session_id": id}).json()
        assert found["persona"] == "sage" and found["kept"]
        asked = stage.engines.thinker.asked[-1]
        assert [message.content for message in asked[1:]] == ["Remember me.", "Good day. It is noon.", "Do you?"]
        with http.websocket_connect(f"ws://127.0.0.1:8998/ws/chat?session_id={id}&after=3") as socket:
            greeting = socket.receive_json()
            assert not greeting["resumed"] and len(greeting["messages"]) == 4
    with stage.client() as http:  # without --history nothing was left behind
        assert http.get("/v1/history").json() == {"object": "list", "lasting": False, "data": []}


def test_the_docs_load_nothing_from_anywhere(stage: Stage) -> None:
    with stage.client() as http:
        page = http.get("/docs")
        assert page.headers["content-security-policy"] == POLICY and "default-src 'none'" in POLICY
        assert not re.findall(r"https?://|src=|<script|<link", page.text)
        described = http.get("/openapi.json").json()
        for path in described["paths"]:
            assert path in page.text
        assert {"/chat", "/chat/stream", "/personas", "/session", "/speak"} <= set(described["paths"])
        assert {"/v1/audio/speech", "/v1/audio/transcriptions", "/v1/models", "/v1/voices"} <= set(described["paths"])
        assert "422" not in json.dumps(described)
        assert http.get("/redoc").status_code == 404


def test_every_route_has_words_and_its_refusals(stage: Stage) -> None:
    for path, methods in create_app(stage.service()).openapi()["paths"].items():
        for method, route in methods.items():
            assert route.get("description"), (method, path)
            if not path.startswith(("/health", "/ready", "/metrics", "/api", "/page", "/v1/realtime")):
                assert {"400", "413", "429", "503"} <= set(route["responses"]), (method, path)
