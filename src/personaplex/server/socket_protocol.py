"""uvicorn's HTTP and WebSockets, with an end for those that never end, and an answer to those that never begin."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import websockets.http11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent

_PATIENCE_SECONDS = 5.0

_TURN_BYTES = 2048
"""That are read of one connection before it is the others' turn: some 300 of the smallest messages, milliseconds."""

LONGEST_ADDRESS = 1 << 16
"""Bytes of the first line of a request, as many as uvicorn takes of a head: a role of 1000 characters is in it."""

# 8 KiB is the package's own bound, which an environment variable can change, but only before it is first imported.
websockets.http11.MAX_LINE_LENGTH = max(websockets.http11.MAX_LINE_LENGTH, LONGEST_ADDRESS)

_REFUSAL = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


HEAD_SECONDS = 20.0
"""How long a caller may take to say what they want."""


class RequestProtocol(H11Protocol):
    """Whoever does not come to the end of a request's head is disconnected; uvicorn's own would wait for ever."""

    _waited_after: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody connected."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._end_if_silent, None)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first of another request end uvicorn's own patience, and begin ours."""
        super().data_received(data)
        last = self.cycle
        if last is not None and last.response_complete and last is not self._waited_after:
            self._waited_after = last
            self.loop.call_later(HEAD_SECONDS, self._end_if_silent, last)

    def _end_if_silent(self, last: RequestResponseCycle | None) -> None:
        """Nothing followed the `last` request but the beginning of one."""
        if self.cycle is last and self in self.connections:  # it leaves them when it becomes a WebSocket
            self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """Once its route has returned, a connection is closed; if its peer takes nothing any more, it is cut.

    A transport that is closed first writes what it holds, which a peer that does not read would keep it from for ever.
    What comes is read a little at a time: of one read tens of thousands of messages would keep everybody waiting.
    """

    _lost: tuple[Exception | None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody wants a WebSocket."""
        super().connection_made(transport)
        self._unread = bytearray()

    def data_received(self, data: bytes) -> None:
        """Take bytes; more than a little of them waits for its turn, and nothing is read meanwhile."""
        if self._unread:
            self._unread += data
            return
        self._read(data[:_TURN_BYTES])
        if len(data) > _TURN_BYTES:
            self._unread += data[_TURN_BYTES:]
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()
        self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        data = bytes(self._unread[:_TURN_BYTES])
        del self._unread[:_TURN_BYTES]
        self._read(data)
        if self.conn.parser_exc is not None:
            self._unread.clear()
        if self._unread:
            self._wait_for_turn()
        elif self._lost is not None:
            super().connection_lost(*self._lost)
        elif not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _read(self, data: bytes) -> None:
        """A handshake that cannot be read is refused, where uvicorn's own would leave the peer waiting."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """A message is whole. Text that is none ends the connection in words; uvicorn's own logs a traceback."""
        try:
            if self.curr_msg_data_type == "text" and not self.close_sent:
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self.frames = []
            self.conn.send_close(1007, "text messages are UTF-8, and this one is not")
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    async def receive(self) -> ASGIReceiveEvent:
        """The next event for the route."""
        event = await super().receive()
        if self._unread and not self.transport.is_closing():  # uvicorn's own reads on when a route has taken all
            self.transport.pause_reading()
        return event

    def handle_ping(self) -> None:
        """Answer a ping, unless the peer takes no answers: they would pile up."""
        if self.writable.is_set() and not self.transport.is_closing():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; what had come is read to its end first."""
        if self._unread:
            self._lost = (exc,)
        else:
            super().connection_lost(exc)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Give the peer a moment to take the rest."""
        super().on_task_complete(task)
        self.loop.call_later(_PATIENCE_SECONDS, self.transport.abort)
