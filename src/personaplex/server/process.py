"""The process around a service: the listening socket, uvicorn, and an orderly end.

SIGTERM or Ctrl-C begins to drain: `/ready` says no, new callers are refused in words, running conversations go on for
`drain_seconds` at most. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType

import uvicorn

from personaplex.errors import UsageError
from personaplex.server.app import create_app
from personaplex.server.log import tell
from personaplex.server.service import Backends, Service
from personaplex.server.settings import ServerSettings
from personaplex.server.socket_protocol import RequestProtocol, SocketProtocol

_BACKLOG = 128
"""Connections that may wait to be accepted."""


def listen(settings: ServerSettings) -> socket.socket:
    """A bound socket, so that a taken port is known before a model is loaded. Raises UsageError."""
    host = settings.host.strip("[]")
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}: {error.strerror or error}; is that an address of mine?") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"cannot listen on {host}, port {settings.port}: {error.strerror}; --port names another"
        ) from error
    return bound


def address_of(settings: ServerSettings, bound: socket.socket) -> str:
    """The address that a browser on this machine is given."""
    host = "localhost" if settings.is_local or settings.host in ("0.0.0.0", "::", "[::]") else settings.host
    return f"{settings.scheme}://{host}:{bound.getsockname()[1]}"


class Server(uvicorn.Server):
    """uvicorn, with our drain before its end."""

    def __init__(self, service: Service, announce: Callable[[], None] = lambda: None) -> None:
        self._announce = announce
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                create_app(service),
                log_config=None,
                access_log=False,  # it would write down tokens and role texts that travel in addresses
                server_header=False,
                http=RequestProtocol,
                ws=SocketProtocol,
                ws_max_size=settings.most_message_bytes,
                ws_per_message_deflate=False,  # sound does not shrink, and a small message must not grow to a large one
                ws_ping_interval=settings.silent_seconds / 2 or None,
                ws_ping_timeout=settings.silent_seconds / 2 or None,
                timeout_graceful_shutdown=5,
                ssl_certfile=settings.certificate,
                ssl_keyfile=settings.key,
            )
        )
        self._service = service
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_told_to_end = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; the model is loaded meanwhile, and a failure to load ends the server."""
        self._loop = loop = asyncio.get_running_loop()
        await super().startup(sockets)

        def end_if_failed(done: Future[Backends]) -> None:
            if done.exception() is not None and not loop.is_closed():
                loop.call_soon_threadsafe(setattr, self, "should_exit", True)

        self._service.loaded.add_done_callback(end_if_failed)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's
        """The first signal drains, the second ends. It may come in the middle of anything, so it only leaves word."""
        if self._loop is None or self._is_told_to_end:
            self.should_exit = True
        else:
            self._is_told_to_end = True
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = asyncio.create_task(self._drain(), name="personaplex-drain")

    async def _drain(self) -> None:
        try:
            await self._service.drain()
            # Whoever is still there is told by the end of their conversation, and has a moment to be told.
            await asyncio.to_thread(self._service.close)
        finally:
            self.should_exit = True


def serve(service: Service, bound: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until a signal ends it; `announce` is called when callers are answered. Raises what loading raised."""
    server = Server(service, announce)
    asyncio.run(server.serve([bound]))
    tell("stopped")
    if service.loaded.done() and (error := service.loaded.exception()) is not None and service.state == "failed":
        raise error
