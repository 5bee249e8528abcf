"""One socket's outgoing half: messages wait for a slow reader, but not for ever and not without number."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from personaplex.server.realtime.journal import Kept
from personaplex.units import FRAME_SECONDS

MOST_BYTES = 4 << 20
"""That wait to be sent; beside the sound that may wait (`unsent_seconds`)."""


class Connection:
    """Sends what it is given, in order, in a task of its own; `too_slow` when the reader does not keep up."""

    def __init__(self, socket: WebSocket, unsent_seconds: float) -> None:
        self.too_slow = False
        self._socket = socket
        self._patience = unsent_seconds
        self._most_frames = max(1, round(unsent_seconds / FRAME_SECONDS))
        self._waiting: deque[Kept] = deque()
        self._n_frames = self._n_bytes = 0
        self._end: tuple[int, str] | None = None
        self._changed = asyncio.Event()
        self._writing = asyncio.create_task(self._write(), name="personaplex-realtime-write")

    @property
    def is_over(self) -> bool:
        """Whether nothing more is sent."""
        return self._writing.done()

    def send(self, kept: Kept) -> None:
        """Send a message after those before it."""
        if self._end is not None or self.too_slow:
            return
        self._waiting.append(kept)
        self._n_frames += kept.sounds
        self._n_bytes += len(kept.text)
        if self._n_frames > self._most_frames or self._n_bytes > MOST_BYTES:
            self.too_slow = True
            self._writing.cancel()
        self._changed.set()

    def close(self, code: int, reason: str) -> None:
        """Close it, once all was sent."""
        self._end = self._end or (code, reason)
        self._changed.set()

    async def wait(self) -> None:
        """Until nothing more is sent: it was closed, is gone, or too slow."""
        await asyncio.wait({self._writing})

    async def end(self) -> None:
        """Send nothing more."""
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # the second: it was closed meanwhile
            while True:
                await self._changed.wait()
                self._changed.clear()
                while self._waiting:
                    kept = self._waiting.popleft()
                    self._n_frames -= kept.sounds
                    self._n_bytes -= len(kept.text)
                    try:
                        async with asyncio.timeout(self._patience):
                            await self._socket.send_text(kept.text)
                    except TimeoutError:
                        self.too_slow = True
                        return
                if self._end is not None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._patience):
                            await self._socket.close(*self._end)
                    return
