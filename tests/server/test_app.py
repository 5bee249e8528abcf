"""Health, readiness, the token, origins and errors, over a real socket where it matters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import WebSocketDenialResponse

from personaplex.errors import UsageError
from personaplex.server.app import create_app
from personaplex.server.origins import Origins
from personaplex.server.process import Server
from personaplex.server.service import Backends, Service
from personaplex.server.settings import ServerSettings
from tests.server.conftest import settings

Make = Callable[..., Service]
TOKEN = "a-good-long-token"


def client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url="http://127.0.0.1:8998", raise_server_exceptions=False)


def test_health_and_readiness(scripted_service: Make) -> None:
    service = scripted_service(slots=1)
    with client(service) as http:
        assert http.get("/health").json() == {"status": "ok", "state": "ready"}
        assert http.get("/ready").status_code == 200
        call = service.open("duplex", service.choose(), client="test")
        full = http.get("/ready")
        assert full.status_code == 503 and full.json()["state"] == "full"
        assert full.json()["slots"]["duplex"] == {"used": 1, "total": 1}
        call.close()
        assert http.get("/ready").status_code == 200
        service.begin_drain()
        assert http.get("/ready").status_code == 503 and http.get("/health").json()["state"] == "draining"
        assert "personaplex_ready 0.0" in http.get("/metrics").text


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 401),
        ({"authorization": f"Bearer {TOKEN}"}, "", 200),
        ({"authorization": f"bearer {TOKEN}"}, "", 200),
        ({"authorization": f"Basic {TOKEN}"}, "", 401),
        ({"authorization": f"Bearer {TOKEN}x"}, "", 401),
        ({"authorization": "Bearer "}, "", 401),
        ({}, f"?token={TOKEN}", 200),
        ({}, "?token=", 401),
        ({}, "?token=%00%ff", 401),
        ({"sec-websocket-protocol": f"realtime, openai-insecure-api-key.{TOKEN}"}, "", 200),
        ({"sec-websocket-protocol": "realtime, openai-insecure-api-key."}, "", 401),
    ],
)
def test_the_token(scripted_service: Make, headers: dict[str, str], query: str, status: int) -> None:
    with client(scripted_service(settings=settings(token=TOKEN))) as http:
        answer = http.get(f"/metrics{query}", headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/health").status_code == http.get("/ready").status_code == 200, "probes have no token"
        assert http.post("/health").status_code == 401


OPEN = {"/", "/health", "/ready"}
HIDDEN = [("get", "/"), ("get", "/docs"), ("get", "/openapi.json")]
SOCKETS = ["/api/chat", "/v1/realtime", "/ws/chat"]


def test_every_way_in_wants_the_token_and_no_foreign_page(scripted_service: Make) -> None:
    service = scripted_service(settings=settings(token=TOKEN))
    foreign = {"origin": "https://evil.example", "authorization": f"Bearer {TOKEN}"}
    with client(service) as http:
        described = [
            (method, path) for path, about in create_app(service).openapi()["paths"].items() for method in about
        ]
        assert len(described) > 20
        for method, path in HIDDEN + described:
            assert http.request(method, path).status_code == (200 if path in OPEN else 401), path
            assert http.request(method, path, headers=foreign).status_code == 403, path
        for path in SOCKETS:
            for headers, status in (({}, 401), (foreign, 403)):
                with pytest.raises(WebSocketDenialResponse) as refused, http.websocket_connect(path, headers=headers):
                    pass
                assert refused.value.status_code == status


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "status"),
    [
        (None, "127.0.0.1:8998", (), 200),
        ("http://127.0.0.1:8998", "127.0.0.1:8998", (), 200),
        ("http://localhost:8998", "localhost:8998", (), 200),
        ("http://[::1]:8998", "[::1]:8998", (), 200),
        ("https://evil.example", "127.0.0.1:8998", (), 403),
        ("http://127.0.0.1:9999", "127.0.0.1:8998", (), 403),
        ("null", "127.0.0.1:8998", (), 403),
        ("http://[", "127.0.0.1:8998", (), 403),
        ("", "127.0.0.1:8998", (), 403),
        ("http://evil.example:8998", "evil.example:8998", (), 403),  # DNS rebinding
        (None, "evil.example:8998", (), 403),
        ("https://talk.example", "127.0.0.1:8998", ("https://talk.example",), 200),
        ("https://talk.example", "talk.example", ("https://talk.example",), 200),
        ("https://talk.example:444", "127.0.0.1:8998", ("https://talk.example",), 403),
        ("https://evil.example", "127.0.0.1:8998", ("*",), 200),
    ],
)
def test_origins(scripted_service: Make, origin: str | None, host: str, allowed: tuple[str, ...], status: int) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    with client(scripted_service(settings=settings(origins=allowed))) as http:
        assert http.get("/health", headers=headers).status_code == status


def test_a_page_of_another_host_that_may_call_can_show_the_token(scripted_service: Make) -> None:
    """Its browser first asks whether it may, and shows no token with that."""
    origin, ask = (
        "https://talk.example",
        {"access-control-request-method": "POST", "access-control-request-headers": "authorization"},
    )
    with client(scripted_service(settings=settings(token=TOKEN, origins=(origin,)))) as http:
        asked = http.options("/v1/audio/speech", headers={"origin": origin, **ask})
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == origin
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        assert http.options("/v1/audio/speech", headers={"origin": "https://evil.example", **ask}).status_code == 403
        assert http.options("/v1/audio/speech").status_code == 401
        shown = http.get("/metrics", headers={"origin": origin, "authorization": f"Bearer {TOKEN}"})
        assert shown.status_code == 200 and shown.headers["access-control-allow-origin"] == origin


HOSTS = st.sampled_from(
    ["127.0.0.1", "127.0.0.1:8998", "localhost:8998", "[::1]:8998", "evil.example", "", "[", "@", "a b"]
)


@given(st.text(max_size=30) | HOSTS.map(lambda host: f"http://{host}") | st.none(), HOSTS | st.text(max_size=20))
def test_whatever_a_browser_says_a_foreign_page_never_calls(origin: str | None, host: str) -> None:
    """Without a token on this machine, who is let in is named as this machine, and so is the page."""
    if Origins(settings()).objection(origin, host) is None:
        assert urlsplit(f"//{host}").hostname in ("127.0.0.1", "localhost", "::1")
        assert origin is None or origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())


def test_other_machines_are_let_in_only_where_that_was_spelled_out() -> None:
    with pytest.raises(UsageError, match="set a token"):
        ServerSettings(host="0.0.0.0")
    with pytest.raises(UsageError, match="set a token"):
        ServerSettings(host="my-machine.local")
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"):
        assert ServerSettings(host=host).is_local
    assert not ServerSettings(host="0.0.0.0", token=TOKEN).is_local
    assert not ServerSettings(host="::", no_auth=True).is_local
    with pytest.raises(UsageError, match="contradict"):
        ServerSettings(token=TOKEN, no_auth=True)


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70_000}, {"token": "short"}, {"token": "has spaces in it"}, {"token": "lätters-here"},
     {"origins": ("talk.example",)}, {"origins": ("https://talk.example/path",)}, {"drain_seconds": -1.0}],
)  # fmt: skip
def test_unusable_settings_are_told(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ServerSettings(**wrong)  # type: ignore[arg-type]


def test_a_server_whose_model_does_not_close_ends_nevertheless() -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    server = Server(Service.of(Backends("broken", close=fail), settings()))
    with pytest.raises(RuntimeError):
        asyncio.run(server._drain())
    assert server.should_exit
