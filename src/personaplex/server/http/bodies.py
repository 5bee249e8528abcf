"""How much a caller may send, and how slowly: refused from what the header says, or as soon as it is too much.

FastAPI reads a body before a route is asked, so the bound is a kind of route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

MOST_JSON_BYTES = 1 << 20
STALLED_SECONDS = 30.0
"""A caller who sends nothing for so long has gone."""


def bounded(most_bytes: int = MOST_JSON_BYTES) -> type[APIRoute]:
    """A kind of route that takes bodies of at most `most_bytes`: 413 for more, 408 for one that does not come."""

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def bounded_handle(request: Request) -> Response:
                declared = request.headers.get("content-length", "")
                if declared.isdecimal() and int(declared) > most_bytes:
                    raise _too_large(most_bytes)
                inner = Request(request.scope, _bounded(request.receive, most_bytes))
                response: Response = await handle(inner)
                # Transcripts are other people's words: no browser is to take them for a page.
                response.headers.setdefault("x-content-type-options", "nosniff")
                return response

            return bounded_handle

    return BoundedRoute


def _bounded(receive: Receive, most_bytes: int) -> Receive:
    n_bytes = 0
    ended = False

    async def receive_bounded() -> Message:
        nonlocal n_bytes, ended
        if ended:  # what follows is that the caller hangs up, which may take as long as it likes
            return await receive()
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the rest of the request did not come", {"connection": "close"}) from None
        n_bytes += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        # An HTTPException, because FastAPI makes a 400 of all others that are raised while it reads a body.
        if n_bytes > most_bytes:
            raise _too_large(most_bytes)
        return message

    return receive_bounded


def _too_large(most_bytes: int) -> HTTPException:
    # Nobody reads the rest: the connection cannot be used again.
    return HTTPException(413, f"at most {most_bytes} bytes are taken at once; send less", {"connection": "close"})
