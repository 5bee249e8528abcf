"""`POST /v1/audio/transcriptions`, as OpenAI's: what is said in a recording, as text, JSON or subtitles."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse

from personaplex.cascade.subtitles import VTT_HEAD, cues, srt, vtt
from personaplex.cascade.transcription import Utterance
from personaplex.server.http.bodies import bounded
from personaplex.server.http.catalogue import check_model
from personaplex.server.http.listener import Listener
from personaplex.server.http.replies import EVENTS, EVENTS_DESCRIBED, PatientResponse, as_event, begun, with_beats
from personaplex.server.http.shapes import NOT_FOUND, REFUSED
from personaplex.server.service import Service

Wanted = Literal["json", "text", "srt", "verbose_json", "vtt"]


def router(service: Service, listener: Listener) -> APIRouter:
    """The route."""
    kind = bounded(service.settings.most_upload_bytes)
    routes = APIRouter(prefix="/v1/audio", tags=["audio"], route_class=kind, responses={**REFUSED, **NOT_FOUND})

    @routes.post(
        "/transcriptions",
        response_class=Response,
        responses={
            200: {
                "content": {
                    "application/json": {"schema": {"type": "object", "required": ["text"]}},
                    "text/plain": {"schema": {"type": "string"}},
                    "text/vtt": {"schema": {"type": "string"}},
                    EVENTS: EVENTS_DESCRIBED,
                }
            }
        },
    )
    async def transcriptions(
        request: Request,
        file: Annotated[UploadFile, File(description="A recording in any usual format.")],
        model: Annotated[str, Form(max_length=200)] = "whisper-1",
        language: Annotated[
            str | None, Form(max_length=20, description="ISO 639-1; default the engine's guess.")
        ] = None,
        response_format: Annotated[Wanted, Form()] = "json",
        prompt: Annotated[str | None, Form(max_length=20_000, description="Taken, and does nothing.")] = None,
        temperature: Annotated[
            float | None, Form(ge=0, le=1, allow_inf_nan=False, description="Taken, and does nothing.")
        ] = None,
        granularities: Annotated[
            list[Literal["word", "segment"]] | None, Form(alias="timestamp_granularities[]", max_length=2)
        ] = None,
        stream: Annotated[bool, Form(description="Events, utterance by utterance.")] = False,
    ) -> Response:
        """Write down what is said. Where nobody speaks the text is empty."""
        del prompt, temperature
        check_model(service, model, "recogniser")
        found = listener.utterances(file.file, language or None)
        if stream:
            events = with_beats(_as_events(await begun(found)))
            return PatientResponse(events, service, EVENTS)
        said, seconds = [], 0.0
        async with aclosing(found):
            async for one in found:
                if isinstance(one, Utterance):
                    said.append(one)
                    if await request.is_disconnected():
                        break  # nobody reads the rest
                else:
                    seconds = one
        return _written(said, seconds, response_format, language, granularities or ["segment"])

    return routes


def _written(
    said: list[Utterance], seconds: float, form: Wanted, language: str | None, granularities: list[Any]
) -> Response:
    text = " ".join(utterance.text for utterance in said)
    if form == "text":
        return PlainTextResponse(text + "\n")
    if form == "srt":
        numbered = enumerate((cue for utterance in said for cue in cues(utterance)), 1)
        return PlainTextResponse("".join(srt(n, cue) for n, cue in numbered))
    if form == "vtt":
        shown = "".join(vtt(cue) for utterance in said for cue in cues(utterance))
        return Response(VTT_HEAD + shown, media_type="text/vtt")
    if form == "json":
        return JSONResponse({"text": text})
    about: dict[str, Any] = {
        "task": "transcribe",
        "language": language or next((utterance.language for utterance in said if utterance.language), None),
        "duration": round(seconds, 3),
        "text": text,
    }
    if "segment" in granularities:
        about["segments"] = [
            {"id": n, "start": round(one.start, 3), "end": round(one.end, 3), "text": one.text}
            for n, one in enumerate(said)
        ]
    if "word" in granularities:
        about["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            for one in said
            for word in one.words
        ]
    return JSONResponse(about)


async def _as_events(found: AsyncGenerator[Utterance | float, None]) -> AsyncGenerator[bytes, None]:
    said: list[str] = []
    async with aclosing(found):
        async for one in found:
            if isinstance(one, Utterance):
                delta = one.text if not said else " " + one.text
                said.append(one.text)
                yield as_event({"type": "transcript.text.delta", "delta": delta})
    yield as_event({"type": "transcript.text.done", "text": " ".join(said)})
