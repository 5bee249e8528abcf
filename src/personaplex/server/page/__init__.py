"""The page at `/`: files that are served as they are, and the two things it asks that no other interface answers.

The files hold nothing secret and are open to everybody; `/about` and `/about/role` are behind the token. A page may
load and reach nothing but this server, whatever a transcript says: that is what the headers are for.
"""

from __future__ import annotations

import dataclasses
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from personaplex import __version__
from personaplex.engine.sampling import Sampling
from personaplex.server.http.bodies import bounded
from personaplex.server.http.shapes import REFUSED
from personaplex.server.service import Service

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
"""What is served, by suffix; nothing else in the folder is."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # the arrow of a select, drawn in the style sheet
        "connect-src 'self'",  # WebSockets of the same host are 'self' too
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}

MOST_ROLE = 20_000
"""Characters of a role text that are counted."""


class _File(NamedTuple):
    content: bytes
    headers: dict[str, str]


class RoleText(BaseModel):
    """A role as somebody types it."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=MOST_ROLE)


class RoleTokens(BaseModel):
    """One token is one frame of the model's memory."""

    tokens: int | None
    most: int | None


def router(service: Service) -> APIRouter:
    """The page's routes."""
    routes = APIRouter(tags=["page"], route_class=bounded(), responses=REFUSED)
    shown = {entry.name: _read(entry) for entry in files(__name__).joinpath("static").iterdir() if _is_shown(entry)}

    def answer(request: Request, name: str) -> Response:
        file = shown.get(name)
        if file is None:
            raise HTTPException(404)
        if request.headers.get("if-none-match") == file.headers["etag"]:
            return Response(status_code=304, headers=file.headers)
        return Response(file.content, headers=file.headers)

    @routes.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page."""
        return answer(request, "index.html")

    @routes.get("/page/{name}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        """What the page consists of."""
        return answer(request, name)

    @routes.get("/about")
    async def about() -> dict[str, Any]:
        """What the page offers: model, modes, personas, voices, sampling, and whether transcripts are kept."""
        backends = service.backends
        return {
            "version": __version__,
            "model": service.model_name,
            "modes": service.modes,
            "persona": service.settings.persona,
            "personas": [
                {"name": persona.name, "prompt": persona.prompt, "voices": list(persona.voices)}
                for persona in service.personas.values()
            ],
            "voices": {mode: service.voices(mode) for mode in service.modes},
            "takes_prompts": backends.takes_prompts,
            "sampling": dataclasses.asdict(Sampling()) | dict(backends.sampling),
            "history": {"kept": service.settings.history is not None, "days": service.settings.retention_days},
            "resume_seconds": service.settings.resume_seconds,
        }

    @routes.post("/about/role")
    async def role(role: RoleText) -> RoleTokens:
        """How many tokens a role text is, of how many frames that the model remembers; null where nobody counts."""
        count = service.backends.role_tokens
        tokens = None if count is None else count(role.text)
        return RoleTokens(tokens=tokens, most=service.backends.context_frames or None)

    return routes


def _is_shown(entry: Traversable) -> bool:
    return entry.name.rpartition(".")[2] in TYPES


def _read(entry: Traversable) -> _File:
    content = entry.read_bytes()
    kind = TYPES[entry.name.rpartition(".")[2]]
    etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    return _File(content, {**HEADERS, "content-type": f"{kind}; charset=utf-8", "etag": etag})
