"""`/v1/realtime`: sockets in, sessions out; what is said on them is the machine's to decide."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket

from personaplex.errors import Busy, PersonaPlexError, UsageError
from personaplex.server.log import tell
from personaplex.server.realtime.connection import Connection
from personaplex.server.realtime.dialect import Dialect
from personaplex.server.realtime.journal import Journal
from personaplex.server.realtime.live import CLIENT, Live
from personaplex.server.refusals import body, close_reason, refusal
from personaplex.server.service import Mode, Service

SUBPROTOCOL = "realtime"
BETA_HEADER, BETA_SUBPROTOCOL = "realtime=v1", "openai-beta.realtime-v1"

MOST_SESSIONS = 256
"""That are held at once, most of which have no slot: whoever is only connected takes room, too."""

_DELIBERATE = (1000, 1001, 1005)
"""Close codes of a client that wants to leave; RFC 6455, section 7.4.1."""


def router(service: Service) -> APIRouter:
    """`/v1/realtime`."""
    routes = APIRouter()
    lobby = Lobby(service)

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await lobby.answer(socket)

    return routes


class Lobby:
    """All sessions of a service, with a connection or waiting for one."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions: dict[str, Live] = {}

    async def answer(self, socket: WebSocket) -> None:
        """Hold a connection to its end. Whatever goes wrong is told in an error event; nothing is raised."""
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        connection = Connection(socket, self._service.settings.unsent_seconds)
        try:
            is_beta = BETA_HEADER in socket.headers.get("openai-beta", "") or BETA_SUBPROTOCOL in offered
            live = self._new(socket.query_params, "beta" if is_beta else "ga")
        except PersonaPlexError as error:
            self._service.refused(error, CLIENT)
            connection.send(Journal.unnumbered({"type": "error", "event_id": "refused", **body(error)}))
            connection.close(refusal(error).close_code, close_reason(error))
            await connection.wait()
            return
        ends = False
        try:
            live.attach(connection)
            live, ends = await self._converse(socket, connection, live)
        finally:
            if connection.too_slow:
                self._service.metrics.slow_readers.inc()
                tell("slow reader", client=CLIENT)
            live.detach(connection, ends=ends)
            await connection.end()

    def _new(self, query: Any, dialect: Dialect) -> Live:
        if len(self._sessions) >= MOST_SESSIONS:
            raise Busy(len(self._sessions), MOST_SESSIONS)
        live = Live(self._service, self._mode(query.get("mode"), query.get("model")), dialect, self._forget)
        self._sessions[live.token] = live
        return live

    def _mode(self, mode: str | None, model: str | None) -> Mode:
        """What is talked with: as asked for, or else as the name of a model suggests. Raises UsageError."""
        modes = self._service.modes
        if mode is not None:
            found = next((known for known in modes if known == mode), None)
            if found is None:
                raise UsageError(f"this server has no mode {mode[:40]!r}; it has {' and '.join(modes)}")
            return found
        if model is None or model in (self._service.model_name, "duplex", "personaplex"):
            return modes[0]
        # "gpt-realtime" and its like: who asks for those expects turns and tools.
        return modes[-1]

    def _forget(self, live: Live) -> None:
        self._sessions.pop(live.token, None)

    async def _converse(self, socket: WebSocket, connection: Connection, live: Live) -> tuple[Live, bool]:
        """Take messages until the connection ends; the session that it had then, and whether the client wants no more.

        A connection that was closed here, or is too slow, ends at once, whatever its client does.
        """
        sending = asyncio.create_task(connection.wait(), name="personaplex-realtime-wait")
        receiving: asyncio.Task[Any] | None = None
        try:
            while True:
                receiving = asyncio.create_task(socket.receive(), name="personaplex-realtime-read")
                idle = self._service.settings.idle_seconds
                await asyncio.wait({receiving, sending}, timeout=idle, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    return live, False
                if not receiving.done():
                    live.fail(UsageError(f"nothing came for {idle:g} s; connect again"))
                    await sending
                    return live, True
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    # Of a connection that was cut uvicorn says 1005, too, but gives no reason.
                    return live, "reason" in message and message["code"] in _DELIBERATE
                live = self._take(message, connection, live)
        finally:
            for task in (sending, receiving):
                if task is not None:
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await task

    def _take(self, message: Any, connection: Connection, live: Live) -> Live:
        try:
            if message.get("text") is None:
                live.binary()
            else:
                live.text(message["text"])
            if live.wish is not None:
                return self._resume(connection, live)
        except Exception as error:
            tell("call failed", error=error)
            live.fail(error)
        return live

    def _resume(self, connection: Connection, new: Live) -> Live:
        """Go on with the session that a new one's client had before."""
        wish, new.wish = new.wish, None
        assert wish is not None
        old = self._sessions.get(wish.token)
        if old is None or old is new:
            new.refuse("session_resume_expired", "there is no such session any more; go on with this new one")
            return new
        if not old.resume(connection, wish.seq):
            new.refuse("session_resync_required", "what followed that message is not kept; go on with this new session")
            return new
        new.end()
        return old
