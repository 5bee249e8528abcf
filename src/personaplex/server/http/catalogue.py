"""`/v1/models` and `/v1/voices`: what computes here, and with which voices it speaks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from fastapi import APIRouter

from personaplex.errors import EngineError, SynthesisError
from personaplex.server.http.bodies import bounded
from personaplex.server.http.shapes import (
    NOT_FOUND,
    REFUSED,
    ModelAbout,
    ModelsResponse,
    VoiceAbout,
    VoicesResponse,
)
from personaplex.server.refusals import Missing
from personaplex.server.service import Service

Kind: TypeAlias = Literal["duplex", "language-model", "recogniser", "synthesiser"]

OPENAI_MODELS: dict[str, Kind] = {
    "tts-1": "synthesiser",
    "tts-1-hd": "synthesiser",
    "gpt-4o-mini-tts": "synthesiser",
    "whisper-1": "recogniser",
    "gpt-4o-transcribe": "recogniser",
    "gpt-4o-mini-transcribe": "recogniser",
}
"""Names that OpenAI's clients come with; they stand for what is here."""


def models(service: Service) -> Iterator[tuple[str, Kind]]:
    """Everything that computes, by name."""
    if service.duplex is not None:
        yield service.model_name, "duplex"
    parts = service.parts()
    yield parts.llm or "", "language-model"
    yield parts.recogniser or "", "recogniser"
    yield parts.synthesiser or "", "synthesiser"


def check_model(service: Service, name: str, kind: Kind) -> None:
    """Raise Missing unless `name` is what this server does `kind` with, or a name of OpenAI's for it.

    A caller chooses among what the server was started with, and loads nothing.
    """
    own = {known for known, its_kind in models(service) if its_kind == kind}
    if name not in own and OPENAI_MODELS.get(name) != kind:
        raise Missing(f"there is no {kind} {name[:80]!r} here; there is {', '.join(sorted(own))}")


def router(service: Service) -> APIRouter:
    """The three routes."""
    started = int(time.time())
    routes = APIRouter(prefix="/v1", tags=["catalogue"], route_class=bounded(), responses=REFUSED)

    def about() -> list[ModelAbout]:
        return [
            ModelAbout(id=name, created=started, owned_by="personaplex", kind=kind) for name, kind in models(service)
        ]

    async def spoken_voices() -> Sequence[str]:
        """The synthesiser's, which reads texts aloud also where no cascade is served; none if it cannot be used."""
        try:
            found = service.voices("cascade")
            return found or (await service.engines.synthesiser(service.parts().synthesiser or "")).voices
        except (EngineError, SynthesisError):
            return ()

    @routes.get("/models")
    async def list_models() -> ModelsResponse:
        """What computes here. `kind` says what for; the rule-based `responder` is no language model."""
        return ModelsResponse(data=about())

    @routes.get("/models/{name:path}", responses=NOT_FOUND)
    async def find_model(name: str) -> ModelAbout:
        """One of them."""
        found = next((model for model in about() if model.id == name), None)
        if found is None:
            raise Missing(f"there is no model {name[:80]!r} here")
        return found

    @routes.get("/voices")
    async def list_voices() -> VoicesResponse:
        """The voices of the duplex model and of the synthesiser. `voices` is the same list, of names alone."""
        data = []
        if service.duplex is not None:
            model = service.model_name
            data += [VoiceAbout(id=name, name=name, mode="duplex", model=model) for name in service.voices("duplex")]
        parts, spoken = service.parts(), await spoken_voices()
        synthesiser = parts.synthesiser or ""
        data += [VoiceAbout(id=name, name=name, mode="cascade", model=synthesiser) for name in spoken]
        default = {"cascade": parts.voice or (spoken[0] if spoken else None)}
        if service.duplex is not None:
            default["duplex"] = str(service.persona().settings(service.voices("duplex")).voice or "") or None
        return VoicesResponse(
            data=data,
            voices=list(dict.fromkeys(voice.id for voice in data)),
            default={mode: voice for mode, voice in default.items() if voice},
        )

    return routes
