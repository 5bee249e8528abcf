"""uvicorn's HTTP and WebSockets, with an end for those that never end, and an answer to those that never begin."""

from __future__ import annotations

import asyncio

import websockets.http11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_PATIENCE_SECONDS = 5.0

LONGEST_ADDRESS = 1 << 16
"""Bytes of the first line of a request, as many as uvicorn takes of a head: a role of 1000 characters is in it."""

# 8 KiB is the package's own bound, which an environment variable can change, but only before it is first imported.
websockets.http11.MAX_LINE_LENGTH = max(websockets.http11.MAX_LINE_LENGTH, LONGEST_ADDRESS)

_REFUSAL = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


HEAD_SECONDS = 20.0
"""How long a caller may take to say what they want."""


class RequestProtocol(H11Protocol):
    """A connection on which no request came is closed after a while; uvicorn's own would keep it for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody connected."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._end_if_silent)

    def _end_if_silent(self) -> None:
        if not self.cycle and self in self.connections:  # it leaves them when it becomes a WebSocket
            self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """Once its route has returned, a connection is closed; if its peer takes nothing any more, it is cut.

    A transport that is closed first writes what it holds, which a peer that does not read would keep it from for ever.
    """

    def data_received(self, data: bytes) -> None:
        """Take bytes; a handshake that cannot be read is refused, where uvicorn's own would leave the peer waiting."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Give the peer a moment to take the rest."""
        super().on_task_complete(task)
        self.loop.call_later(_PATIENCE_SECONDS, self.transport.abort)
