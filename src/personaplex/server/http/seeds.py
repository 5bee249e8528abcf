"""The seeds' API: personas, chat whole or token by token, speech, sessions. Its WebSocket is in `chat_socket.py`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Response

from personaplex.audio import wav_header
from personaplex.persona import Parts, Persona
from personaplex.server.http.bodies import bounded
from personaplex.server.http.chats import Chat, Chats, Happening, thinker_name
from personaplex.server.http.replies import EVENTS, EVENTS_DESCRIBED, PatientResponse, as_event, begun, with_beats
from personaplex.server.http.shapes import (
    IN_USE,
    NOT_FOUND,
    REFUSED,
    ChatRequest,
    ChatResponse,
    PersonaAbout,
    PersonasResponse,
    SessionRequest,
    SessionResponse,
    SpeakRequest,
)
from personaplex.server.http.speaker import Speaker
from personaplex.server.service import Service


def router(service: Service, chats: Chats, speaker: Speaker) -> APIRouter:
    """The five routes."""
    routes = APIRouter(tags=["chat"], route_class=bounded(), responses=REFUSED)
    answers = _Answers(service, chats)

    @routes.get("/personas")
    async def personas() -> PersonasResponse:
        """Who the agent can be."""
        about = [_about(persona, service.parts(name)) for name, persona in service.personas.items()]
        return PersonasResponse(personas=about, default=service.settings.persona)

    @routes.post("/session", status_code=201)
    async def session(request: SessionRequest | None = None) -> SessionResponse:
        """Begin a conversation that is remembered, turn after turn."""
        wanted = request or SessionRequest()
        chat = chats.start(wanted.persona, wanted.title)
        assert chat.transcript is not None
        chat.transcript.keep()
        await chat.transcript.settle()
        found = await service.history.find(chat.id)
        created = 0.0 if found is None else found.created
        return SessionResponse(session_id=chat.id, persona=chat.persona, title=wanted.title, created=created)

    @routes.post("/chat", responses={**NOT_FOUND, **IN_USE})
    async def chat(request: ChatRequest) -> ChatResponse:
        """Say something, get the whole answer; remembered where a session is named."""
        done: dict[str, Any] = {}
        async with aclosing(await answers.to(request)) as answer:
            async for happening in answer:
                if happening.error is not None:
                    raise happening.error
                done = happening.about
        return ChatResponse(**{name: value for name, value in done.items() if name != "type"})

    @routes.post(
        "/chat/stream",
        response_class=Response,
        responses={
            200: {
                "content": {EVENTS: EVENTS_DESCRIBED},
                "description": "token events, then done or error",
            },
            **NOT_FOUND,
            **IN_USE,
        },
    )
    async def chat_stream(request: ChatRequest) -> Response:
        """Say something, get the answer as server-sent events: `token`, and `done` or `error` at its end.

        Whoever hangs up ends the answer; what was said of it is remembered.
        """
        answer = await begun(await answers.to(request))

        async def events() -> AsyncGenerator[bytes, None]:
            async with aclosing(answer):
                async for happening in answer:
                    yield as_event(happening.about)

        return PatientResponse(with_beats(events()), service, EVENTS, {"x-accel-buffering": "no"})

    @routes.post(
        "/speak",
        response_class=Response,
        responses={200: {"content": {"audio/wav": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def speak(request: SpeakRequest) -> Response:
        """Say a text: a WAV file, 24 kHz, 16 bit, mono."""
        plan = speaker.plan(request.voice, request.persona)
        async with aclosing(speaker.read(request.text, plan, "pcm")) as pieces:
            pcm = b"".join([piece async for piece in pieces])
        return Response(wav_header(len(pcm) // 2) + pcm, media_type="audio/wav")

    return routes


def _about(persona: Persona, parts: Parts) -> PersonaAbout:
    return PersonaAbout(
        name=persona.name,
        prompt=persona.prompt,
        voice=parts.voice,
        voices=list(persona.voices),
        model=thinker_name(parts),
        temperature=parts.temperature,
        max_tokens=parts.max_tokens,
    )


class _Answers:
    """Answers to requests, in the session that they name, or in one that is forgotten afterwards."""

    def __init__(self, service: Service, chats: Chats) -> None:
        self._service = service
        self._chats = chats

    async def to(self, request: ChatRequest) -> AsyncGenerator[Happening, None]:
        """The events of an answer. Raises Missing, PersonaError, Unavailable; reading them, what went wrong at once."""
        if request.session_id is None:
            return self._happenings(self._chats.stateless(request.persona), request.message)
        chat = await self._chats.find(request.session_id)
        if request.persona is not None and request.persona != chat.persona:
            await chat.switch_persona(self._service.persona(request.persona).name)
        return self._happenings(chat, request.message)

    async def _happenings(self, chat: Chat, text: str) -> AsyncGenerator[Happening, None]:
        try:
            async with self._chats.reading(chat), aclosing(chat.answer(text)) as answer:
                has_begun = False
                async for happening in answer:
                    if happening.error is not None and not has_begun:
                        raise happening.error
                    has_begun = True
                    yield happening
        finally:
            if chat.transcript is None:
                await chat.close()
