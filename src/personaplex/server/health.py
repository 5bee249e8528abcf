"""`/health`, `/ready` and `/metrics`: what whoever runs a server asks it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from personaplex.server.service import Service


def router(service: Service) -> APIRouter:
    """The three routes."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        """The process lives and answers; its state says what it is doing."""
        return {"status": "ok", "state": service.state}

    @routes.get("/ready", responses={503: {"description": "Loading, full or about to stop."}})
    async def ready(response: Response) -> dict[str, Any]:
        """Whether a caller would be taken now: 200, or 503 while it is loading, full or about to stop."""
        response.status_code = 200 if service.is_ready else 503
        state = "full" if service.state == "ready" and service.is_full else service.state
        slots = service.backends.slots if service.state in ("ready", "draining") and service.loaded.done() else {}
        used = {mode: {"used": service.in_use(mode), "total": total} for mode, total in slots.items()}
        return {"ready": service.is_ready, "state": state, "slots": used}

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """All numbers, for Prometheus."""
        return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})

    return routes
