"""All HTTP routes of one service, and the WebSocket that belongs to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI

from personaplex.server.http import (
    catalogue,
    chat_socket,
    history,
    manual,
    respond,
    seeds,
    speech,
    transcriptions,
)
from personaplex.server.http.chats import Chats
from personaplex.server.http.listener import Listener
from personaplex.server.http.speaker import Speaker
from personaplex.server.service import Service


def router(service: Service) -> APIRouter:
    """All of them; the conversations in text end with the application."""
    chats, listener, speaker = Chats(service), Listener(service), Speaker(service)

    @asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        yield
        await chats.close()

    async def takes_work() -> None:
        service.check_takes_work()

    work = [Depends(takes_work)]
    routes = APIRouter(lifespan=life)
    routes.include_router(seeds.router(service, chats, speaker))
    routes.include_router(chat_socket.router(service, chats))
    routes.include_router(speech.router(service, speaker), dependencies=work)
    routes.include_router(transcriptions.router(service, listener), dependencies=work)
    routes.include_router(respond.router(service, chats, listener, speaker))
    routes.include_router(catalogue.router(service))
    routes.include_router(history.router(service, chats))
    routes.include_router(manual.router())
    return routes


def describe(app: FastAPI) -> None:
    """Take FastAPI's own 422 out of the description: mistakes in a request are 400, in OpenAI's shape."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        for methods in schema["paths"].values():
            for route in methods.values():
                route["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
