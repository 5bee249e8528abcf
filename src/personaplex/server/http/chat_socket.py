"""`WS /ws/chat`: a conversation in text over one connection, and over the next one when that breaks.

The caller sends JSON objects: `message`, `switch_persona`, `reset`, `cancel`, `ping`. The server sends `session` first,
then what happens, each with a `seq`; `pong` and mistakes in what was sent have none. A caller who comes back with
`?session_id=ID&after=SEQ` within the grace time is sent what happened since; later, what was said.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from personaplex.cascade.engine import Message
from personaplex.errors import Busy, PersonaPlexError, UsageError
from personaplex.server.http.chats import Chat, Chats, thinker_name
from personaplex.server.http.shapes import MOST_CHARACTERS
from personaplex.server.log import tell
from personaplex.server.refusals import Missing, TooLarge, body, close_reason, refusal
from personaplex.server.service import Service

MOST_SOCKETS = 256
UNREAD_SECONDS = 10.0
"""Who takes nothing for so long is disconnected; the conversation waits for them as for everybody."""

MOST_HISTORY = 200
"""Messages that a caller who comes back is sent; all of them are in `/v1/history`."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def router(service: Service, chats: Chats) -> APIRouter:
    """The WebSocket."""
    routes = APIRouter()
    open_sockets: set[WebSocket] = set()

    @routes.websocket("/ws/chat")
    async def chat_socket(websocket: WebSocket) -> None:
        offered = websocket.scope.get("subprotocols", [])
        # A browser that shows its token as a subprotocol wants one of the others chosen.
        await websocket.accept("chat" if "chat" in offered else None)
        caller = _Caller(service, chats, websocket)
        try:
            if len(open_sockets) >= MOST_SOCKETS:
                raise Busy(len(open_sockets), MOST_SOCKETS)
            open_sockets.add(websocket)
            await caller.run()
        except (WebSocketDisconnect, ConnectionError):
            pass
        except TimeoutError:
            service.metrics.slow_readers.inc()
            await _close(websocket, 1008, "you do not read what you are sent")
        except Exception as error:
            if not isinstance(error, PersonaPlexError):
                tell("a chat failed", error=error)
            service.refused(error, "chat")
            await caller.refuse(error)
        finally:
            open_sockets.discard(websocket)

    return routes


class _Caller:
    """One connection: what it sends is done in order, what happens is sent to it."""

    def __init__(self, service: Service, chats: Chats, websocket: WebSocket) -> None:
        self._service = service
        self._chats = chats
        self._websocket = websocket
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Talk until the connection ends. Raises what makes it impossible, TimeoutError for a reader who is stuck."""
        chat, after = await self._find()
        async with self._chats.reading(chat):
            await self._greet(chat, after)
            follows = chat.last if after is None or not chat.remembers(after) else after
            telling = asyncio.create_task(self._tell(chat, follows), name="personaplex-chat-socket")
            listening = asyncio.create_task(self._listen(chat), name="personaplex-chat-listener")
            try:
                done, _ = await asyncio.wait([telling, listening], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (telling, listening):
                    task.cancel()
                await asyncio.wait([telling, listening])

    async def _find(self) -> tuple[Chat, int | None]:
        query = self._websocket.query_params
        id, persona, after = query.get("session_id"), query.get("persona") or None, query.get("after")
        if after is not None and not (after.isascii() and after.isdecimal() and len(after) < 20):
            raise UsageError("after must be a number: the seq of the last event that was read")
        if not id:
            return self._chats.start(persona, _title(query.get("title"))), None
        if not _ID.fullmatch(id):
            raise Missing("there is no such session")
        chat = await self._chats.find(id)
        if persona is not None and persona != chat.persona:
            await chat.switch_persona(self._service.persona(persona).name)
        return chat, None if after is None else int(after)

    async def _greet(self, chat: Chat, after: int | None) -> None:
        is_whole = after is not None and chat.remembers(after)
        said: list[Message] = [] if is_whole else list(chat.session.history[-MOST_HISTORY:])
        await self._send(
            {
                "type": "session",
                "session_id": chat.id,
                "persona": chat.persona,
                "model": thinker_name(chat.session.parts),
                "personas": list(self._service.personas),
                "resumed": is_whole,
                "seq": after if is_whole else chat.last,
                "grace_seconds": self._service.settings.resume_seconds,
                "messages": [{"role": message.role, "content": message.content} for message in said],
            }
        )

    async def _tell(self, chat: Chat, after: int) -> None:
        async with aclosing(chat.follow(after)) as happenings:
            async for happening in happenings:
                await self._send({**happening.about, "seq": happening.number})

    async def _listen(self, chat: Chat) -> None:
        while True:
            received = await self._websocket.receive()
            if received["type"] == "websocket.disconnect":
                return
            text = received.get("text")
            try:
                await self._do(chat, _parse(text))
            except PersonaPlexError as error:
                await self._send({"type": "error", **body(error)})

    async def _do(self, chat: Chat, sent: dict[str, Any]) -> None:
        kind = sent.get("type", "message")
        if kind in ("message", "chat"):
            chat.ask(_text(sent))
        elif kind == "ping":
            await self._send({"type": "pong", **({"id": sent["id"]} if isinstance(sent.get("id"), int | str) else {})})
        elif kind == "switch_persona":
            name = sent.get("persona", sent.get("name"))
            if not isinstance(name, str):
                raise UsageError(
                    'switch_persona wants a persona, such as {"type": "switch_persona", "persona": "sage"}'
                )
            await chat.switch_persona(self._service.persona(name).name)
        elif kind == "reset":
            await chat.reset()
        elif kind == "cancel":
            await chat.cancel()
        else:
            known = "message, switch_persona, reset, cancel and ping"
            raise UsageError(f"unknown type {str(kind)[:40]!r}; there are {known}")

    async def _send(self, about: dict[str, Any]) -> None:
        async with self._sending, asyncio.timeout(UNREAD_SECONDS):
            await self._websocket.send_text(json.dumps(about))

    async def refuse(self, error: Exception) -> None:
        """Say why, as an event and as the reason of the end."""
        try:
            await self._send({"type": "error", **body(error)})
        except (RuntimeError, OSError, TimeoutError, WebSocketDisconnect):
            return
        await _close(self._websocket, refusal(error).close_code, close_reason(error))


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    if websocket.application_state is WebSocketState.CONNECTED:
        try:
            async with asyncio.timeout(1.0):
                await websocket.close(code, reason)
        except (RuntimeError, OSError, TimeoutError):
            pass


def _parse(text: str | None) -> dict[str, Any]:
    if text is None:
        raise UsageError("messages are JSON in text frames; this was a binary one")
    try:
        sent = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(
            'that is no JSON; expected an object, such as {"type": "message", "message": "Hello"}'
        ) from None
    if not isinstance(sent, dict):
        raise UsageError('expected a JSON object, such as {"type": "message", "message": "Hello"}')
    return sent


def _text(sent: dict[str, Any]) -> str:
    text = next((sent[name] for name in ("message", "text", "content") if name in sent), None)
    if not isinstance(text, str) or not text.strip():
        raise UsageError('there is nothing in it; expected {"type": "message", "message": "..."}')
    if len(text) > MOST_CHARACTERS:
        raise TooLarge(f"the message has {len(text)} characters; at most {MOST_CHARACTERS} are taken at once")
    return text


def _title(title: str | None) -> str | None:
    return title[:200] if title else None
