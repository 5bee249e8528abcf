"""uvicorn's WebSockets, with an end for those that never end."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_PATIENCE_SECONDS = 5.0


class SocketProtocol(WebSocketsSansIOProtocol):
    """Once its route has returned, a connection is closed; if its peer takes nothing any more, it is cut.

    A transport that is closed first writes what it holds, which a peer that does not read would keep it from for ever.
    """

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Give the peer a moment to take the rest."""
        super().on_task_complete(task)
        self.loop.call_later(_PATIENCE_SECONDS, self.transport.abort)
