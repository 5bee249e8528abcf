"""`/v1/history`: what was said, to list, fetch, rename, export and delete.

It belongs to whoever may call: the server knows a token, and no people.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response

from personaplex.audio import wav_header
from personaplex.server.history.record import Session
from personaplex.server.http.bodies import bounded
from personaplex.server.http.chats import Chats, as_messages
from personaplex.server.http.replies import PatientResponse
from personaplex.server.http.shapes import (
    NOT_FOUND,
    REFUSED,
    Deleted,
    HistoryResponse,
    SessionAbout,
    TitleRequest,
    Transcribed,
    TurnAbout,
)
from personaplex.server.refusals import Missing
from personaplex.server.service import Service
from personaplex.units import SAMPLE_RATE

Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Kinds = Literal["chat", "realtime", "moshi", "respond"]


def router(service: Service, chats: Chats) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/history", tags=["history"], route_class=bounded(), responses=REFUSED)
    history = _Reader(service)

    @routes.get("")
    async def list_sessions(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        kind: Kinds | None = None,
    ) -> HistoryResponse:
        """Sessions, the latest first."""
        found = await service.history.list(limit, offset, kind)
        return HistoryResponse(lasting=service.history.is_lasting, data=[_about(session) for session in found])

    @routes.delete("")
    async def delete_all() -> Deleted:
        """Delete everything, for good. Conversations that are going on end."""
        await chats.remove()
        return Deleted(deleted=await service.history.delete())

    @routes.get("/{id}", responses=NOT_FOUND)
    async def fetch(id: Id) -> Transcribed:
        """What was said in a session."""
        return await history.read(id)

    @routes.patch("/{id}", responses=NOT_FOUND)
    async def rename(id: Id, request: TitleRequest) -> SessionAbout:
        """Give a session a title."""
        await history.find(id)
        await service.history.rename(id, request.title)
        return _about(await history.find(id))

    @routes.delete("/{id}", responses=NOT_FOUND)
    async def delete(id: Id) -> Deleted:
        """Delete a session, its transcript and its sound, for good. If it is going on in text, it ends."""
        await chats.remove(id)
        deleted = await service.history.delete(id)
        if not deleted:
            raise _missing(id)
        return Deleted(deleted=deleted)

    @routes.get(
        "/{id}/export",
        response_class=Response,
        responses={
            200: {
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "text/plain": {"schema": {"type": "string"}},
                    "audio/wav": {"schema": {"type": "string", "format": "binary"}},
                }
            },
            **NOT_FOUND,
        },
    )
    async def export(
        id: Id, form: Annotated[Literal["json", "text", "wav"], Query(alias="format")] = "json"
    ) -> Response:
        """A session as a file: its transcript, or its sound (agent left, user right) where that was recorded."""
        if form == "wav":
            session = await history.find(id)
            if not session.recorded:
                raise Missing("nothing was recorded in this session; recording must be asked for when it begins")
            n_samples = round(session.recorded * SAMPLE_RATE)
            return PatientResponse(history.wav(id, n_samples), service, "audio/wav", _as_file(id, "wav"))
        found = await history.read(id)
        if form == "json":
            text = json.dumps(found.model_dump(), indent=1, ensure_ascii=False) + "\n"
            return Response(text, media_type="application/json", headers=_as_file(id, "json"))
        lines = [f"{turn.persona or turn.role}: {turn.content}\n" for turn in found.messages]
        return Response("".join(lines), media_type="text/plain", headers=_as_file(id, "txt"))

    return routes


class _Reader:
    """Sessions that must be there."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def find(self, id: str) -> Session:
        """A session. Raises Missing."""
        found = await self._service.history.find(id)
        if found is None:
            raise _missing(id)
        return found

    async def read(self, id: str) -> Transcribed:
        """A session and its turns. Raises Missing."""
        session = await self.find(id)
        said: list[dict[str, Any]] = as_messages(await self._service.history.turns(id))
        return Transcribed(session=_about(session), messages=[TurnAbout(**turn) for turn in said])

    async def wav(self, id: str, n_samples: int) -> AsyncGenerator[bytes, None]:
        """A recording, piece by piece, as long as it was when it was asked for."""
        yield wav_header(n_samples, channels=2)
        number, left = 0, 4 * n_samples
        while left and (piece := await self._service.history.sound(id, number)) is not None:
            number, pcm = piece
            yield pcm[:left]
            left -= min(left, len(pcm))


def _missing(id: str) -> Missing:
    return Missing(f"there is no session {id!r}; it was deleted, or never kept")


def _about(session: Session) -> SessionAbout:
    return SessionAbout(
        id=session.id,
        kind=session.kind,
        persona=session.persona,
        title=session.title,
        created=session.created,
        updated=session.updated,
        turns=session.n_turns,
        recorded_seconds=round(session.recorded, 3),
    )


def _as_file(id: str, suffix: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{id}.{suffix}"'}
