"""Responses that are sent while they are made, server-sent events among them, to readers who may be slow or gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar, cast

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from personaplex.errors import PersonaPlexError
from personaplex.server.log import tell
from personaplex.server.service import Service

T = TypeVar("T")

UNREAD_SECONDS = 30.0
"""Who takes nothing of what waits for them for so long is dropped."""

BEAT_SECONDS = 15.0
"""A comment is sent so often while nothing happens, so that nobody in between takes the connection for dead."""

EVENTS = "text/event-stream"
EVENTS_DESCRIBED: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
    }
}
"""Each event, as OpenAPI is told of it."""


class PatientResponse(StreamingResponse):
    """A streamed response that gives up on a reader who takes nothing for `UNREAD_SECONDS`."""

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        service: Service,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(content, media_type=media_type, headers={"cache-control": "no-store", **(headers or {})})
        self._service = service

    async def stream_response(self, send: Send) -> None:
        """Send it, piece by piece. What fails midway leaves it without an end: nobody takes it for the whole."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await self._send(send, start)
        pieces = cast(AsyncGenerator[bytes, None], self.body_iterator)
        try:
            async for piece in pieces:
                await self._send(send, {"type": "http.response.body", "body": piece, "more_body": True})
        except PersonaPlexError as error:
            tell("a response broke off", level=logging.WARNING, reason=error)
            return
        finally:
            # The reader may be gone, and this task with it: what was begun for them is ended nevertheless.
            with anyio.CancelScope(shield=True):
                await pieces.aclose()
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                await send(message)
        except TimeoutError:
            self._service.metrics.slow_readers.inc()
            raise OSError("the reader takes nothing") from None


async def begun(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same items, of which the first was waited for: what makes it impossible is raised here, not midway."""
    try:
        first = [await anext(items)]
    except StopAsyncIteration:
        first = []
    except BaseException:
        await items.aclose()
        raise

    async def rest() -> AsyncGenerator[T, None]:
        async with aclosing(items):
            for item in first:
                yield item
            async for item in items:
                yield item

    return rest()


def as_event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event. Its JSON has no line ends, so it is one line."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def with_beats(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same events, and a comment whenever there was none for a while."""
    async with aclosing(events):
        coming: asyncio.Task[bytes] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(events))
                done, _ = await asyncio.wait([coming], timeout=BEAT_SECONDS)
                if not done:
                    yield b": still there\n\n"
                    continue
                task, coming = coming, None
                try:
                    yield task.result()
                except StopAsyncIteration:
                    return
        finally:
            if coming is not None:
                coming.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await coming
