"""`POST /v1/audio/speech`, as OpenAI's: a text said, sent while it is made."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Response

from personaplex.server.http.bodies import bounded
from personaplex.server.http.catalogue import check_model
from personaplex.server.http.replies import EVENTS, EVENTS_DESCRIBED, PatientResponse, as_event, begun, with_beats
from personaplex.server.http.shapes import NOT_FOUND, REFUSED, SpeechRequest, VoiceId
from personaplex.server.http.sound import MEDIA_TYPES
from personaplex.server.http.speaker import Speaker
from personaplex.server.service import Service

BINARY = {"schema": {"type": "string", "format": "binary"}}
FILES = {media_type.partition(";")[0]: BINARY for media_type in MEDIA_TYPES.values()}


def router(service: Service, speaker: Speaker) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/v1/audio", tags=["audio"], route_class=bounded(), responses={**REFUSED, **NOT_FOUND})

    @routes.post(
        "/speech",
        response_class=Response,
        responses={200: {"content": {**FILES, EVENTS: EVENTS_DESCRIBED}}},
    )
    async def speech(request: SpeechRequest) -> Response:
        """Say a text, in any of six formats, sentence by sentence as it is made; 24 kHz mono.

        `voice` is one of the synthesiser's, or a persona's name; OpenAI's own names stand for the default. With
        `stream_format` "sse" the same bytes come as `speech.audio.delta` events.
        """
        check_model(service, request.model, "synthesiser")
        voice = request.voice.id if isinstance(request.voice, VoiceId) else request.voice
        plan = speaker.plan(voice or None, language=request.language)
        pieces = await begun(speaker.read(request.input, plan, request.response_format, request.speed))
        if request.stream_format == "audio":
            return PatientResponse(pieces, service, MEDIA_TYPES[request.response_format])
        return PatientResponse(with_beats(_as_events(pieces)), service, EVENTS)

    return routes


async def _as_events(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            yield as_event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
    yield as_event({"type": "speech.audio.done"})
