"""The routes put together, and what stands before and behind all of them. Each part has one line here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from personaplex import __version__
from personaplex.errors import PersonaPlexError
from personaplex.server import health, page
from personaplex.server.auth import Guard
from personaplex.server.log import tell
from personaplex.server.refusals import RETRY_SECONDS, body, refusal
from personaplex.server.service import Service


def create_app(service: Service) -> FastAPI:
    """The application of a service; it starts to load the model when it starts, and frees it at its end."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        if not service.loaded.done():
            service.start()
        yield
        await service.close_chat()
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="PersonaPlex",
        version=__version__,
        lifespan=life,
        middleware=[
            Middleware(Guard, settings=service.settings, metrics=service.metrics),
            Middleware(
                CORSMiddleware, allow_origins=service.settings.origins, allow_methods=["*"], allow_headers=["*"]
            ),
        ],
    )
    app.state.service = service
    app.add_exception_handler(PersonaPlexError, _refuse)
    app.add_exception_handler(Exception, _fail)
    app.include_router(health.router(service))
    app.include_router(page.router(service))
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    how = refusal(error)
    if how.status >= 500:
        tell("request failed", path=request.url.path, code=how.code, error=error)
    headers = {"retry-after": str(RETRY_SECONDS)} if how.status in (429, 503) else None
    return JSONResponse(body(error), how.status, headers)


async def _fail(request: Request, error: Exception) -> Response:
    tell("request failed", path=request.url.path, code="internal_error", error=error)
    return JSONResponse(body(error), refusal(error).status)
