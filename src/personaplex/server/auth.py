"""Who may call: a token, and where the page that calls comes from. Checked before any route, for HTTP and WebSocket.

The token comes as `Authorization: Bearer TOKEN`, from browsers' WebSockets (which cannot send headers) as the
subprotocol `openai-insecure-api-key.TOKEN`, as OpenAI's clients do, or as `?token=TOKEN`.
"""

from __future__ import annotations

import hmac
import json
from http import HTTPStatus
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from personaplex.server.log import tell
from personaplex.server.metrics import Metrics
from personaplex.server.origins import Origins
from personaplex.server.settings import ServerSettings

SUBPROTOCOL = "openai-insecure-api-key."

OPEN_PATHS = ("/", "/health", "/ready", "/favicon.ico")
OPEN_FOLDERS = ("/page/",)
"""What holds nothing but what everybody who has this program has. All else is behind the token."""


class Guard:
    """ASGI middleware: whoever may not call gets 401 or 403, and no route ever sees them."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._token = settings.token
        self._origins = Origins(settings)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if wrong := self._origins.objection(headers.get("origin"), headers.get("host", "")):
            await self._refuse(scope, receive, send, HTTPStatus.FORBIDDEN, "foreign_origin", wrong)
        elif not self._is_open(scope, headers) and not self._knows(scope, headers):
            wrong = "this server wants its token: as Authorization: Bearer TOKEN, or as ?token=TOKEN"
            await self._refuse(scope, receive, send, HTTPStatus.UNAUTHORIZED, "invalid_api_key", wrong)
        else:
            await self._app(scope, receive, send)

    def _is_open(self, scope: Scope, headers: Headers) -> bool:
        if self._token is None:
            return True
        if scope["type"] != "http":
            return False
        path, method = scope["path"], scope["method"]
        if method == "OPTIONS" and "access-control-request-method" in headers:
            return True  # a browser asks whether it may ask, and sends no token with that; no route is called by it
        return method in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(OPEN_FOLDERS))

    def _knows(self, scope: Scope, headers: Headers) -> bool:
        shown = []
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            shown.append(value.strip())
        for protocols in headers.getlist("sec-websocket-protocol"):
            names = (name.strip() for name in protocols.split(","))
            shown += [name.removeprefix(SUBPROTOCOL) for name in names if name.startswith(SUBPROTOCOL)]
        shown += parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
        assert self._token is not None
        # How long it takes does not tell how much of a token is right.
        return any(hmac.compare_digest(token.encode(), self._token.encode()) for token in shown)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, status: HTTPStatus, code: str, why: str
    ) -> None:
        self._metrics.refusals.labels(code).inc()
        tell("refused", code=code, path=scope["path"], client=(scope.get("client") or ("?",))[0])
        about = {"error": {"type": "invalid_request_error", "code": code, "message": why, "param": None}}
        await deny(scope, receive, send, int(status), about)


async def deny(scope: Scope, receive: Receive, send: Send, status: int, about: object) -> None:
    """Answer with JSON: a request, or a WebSocket that asks to be let in."""
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    if scope["type"] == "websocket":
        await receive()  # the wish to connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
    content = json.dumps(about).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": content})
