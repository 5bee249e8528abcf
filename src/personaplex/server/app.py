"""The routes put together, and what stands before and behind all of them. Each part has one line here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from personaplex import __version__
from personaplex.errors import PersonaPlexError, UsageError
from personaplex.server import health, moshi, page
from personaplex.server.auth import Guard
from personaplex.server.http import routes as http_routes
from personaplex.server.log import tell
from personaplex.server.realtime import routes as realtime
from personaplex.server.refusals import RETRY_SECONDS, Missing, TooLarge, body, refusal
from personaplex.server.service import Service

PLAIN: dict[int, type[UsageError]] = {404: Missing, 413: TooLarge}
"""What the framework's own refusals are called in a body; all others are mistakes in the request."""


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
        # FastAPI's pages load their scripts from another host; `http/manual.py` writes one that loads nothing.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
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
    app.add_exception_handler(RequestValidationError, _mistake)
    app.add_exception_handler(HTTPException, _plain)
    app.include_router(health.router(service))
    app.include_router(moshi.router(service))
    app.include_router(realtime.router(service))
    app.include_router(http_routes.router(service))
    app.include_router(page.router(service))
    http_routes.describe(app)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    how = refusal(error)
    if how.status >= 500:
        tell("request failed", path=request.url.path, code=how.code, error=error)
    headers = {"retry-after": str(RETRY_SECONDS)} if how.status in (429, 503) else None
    return JSONResponse(body(error), how.status, headers)


async def _mistake(_: Request, error: Exception) -> Response:
    """What is wrong with a request, and where; not what was in it, which JSON may be unable to say (NaN)."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(part for part in first["loc"][1:] if isinstance(part, str)) or None
    about = UsageError(f"{where or 'the request'}: {first['msg'].removeprefix('Value error, ')}")
    return JSONResponse(body(about, where), refusal(about).status)


async def _plain(_: Request, error: Exception) -> Response:
    """A path or a method that there is not, and what is raised while a body is read."""
    assert isinstance(error, HTTPException)
    about = PLAIN.get(error.status_code, UsageError)(str(error.detail))
    return JSONResponse(body(about), error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    tell("request failed", path=request.url.path, code="internal_error", error=error)
    return JSONResponse(body(error), refusal(error).status)
