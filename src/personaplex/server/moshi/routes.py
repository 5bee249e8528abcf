"""The one route of the protocol."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from personaplex.server.moshi.call import answer
from personaplex.server.service import Service


def router(service: Service) -> APIRouter:
    """`/api/chat`."""
    routes = APIRouter()

    @routes.websocket("/api/chat")
    async def chat(socket: WebSocket) -> None:
        await answer(socket, service)

    return routes
