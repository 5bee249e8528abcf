"""`POST /v1/respond`: a recording in, an answer out: `personaplex respond` for whoever is elsewhere.

The duplex model hears the recording and then silence, in a slot like every caller's, until it has answered and fallen
quiet. Where there is none, the cascade writes down what was said, answers, and says the answer.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from personaplex.audio import pcm16, read_audio, wav_header
from personaplex.cascade.transcription import Utterance
from personaplex.cascade.worker import Worker
from personaplex.conversation import AgentText, Audio, Ended, Error, Event, EventStream, Ready
from personaplex.errors import AudioError, Closed, Unavailable, UsageError
from personaplex.reply import AgentFrame
from personaplex.server.history.store import Transcript
from personaplex.server.http.bodies import bounded
from personaplex.server.http.chats import Chats
from personaplex.server.http.listener import Listener
from personaplex.server.http.replies import PatientResponse, begun
from personaplex.server.http.shapes import REFUSED, RespondResponse
from personaplex.server.http.speaker import Speaker
from personaplex.server.http.turnstile import Turnstile
from personaplex.server.service import Service
from personaplex.server.session import Session
from personaplex.talk import SilenceWatch, StopRule
from personaplex.units import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE, frames_in

MOST_INPUT_SECONDS = 300.0
MOST_TAIL_SECONDS = 120.0
MOST_WAIT_SECONDS = 900.0
"""An answer that takes longer than this to be made is given up."""

MOST_READ_AT_ONCE = 2
"""Recordings: whoever has no slot yet must not take the processor from those who have."""

_FEED_FRAMES = 12
_CHUNK_FRAMES = 12


@dataclass
class Answer:
    """What is known of an answer; `stopped` is why it ended, as in `personaplex.reply`."""

    mode: str
    persona: str
    voice: str | None = None
    seed: int | None = None
    text: str = ""
    heard: str | None = None
    stopped: str = ""
    input_seconds: float = 0.0
    n_samples: int = 0
    transcript: Transcript | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What names it in the history."""
        return {} if self.transcript is None else {"x-session-id": self.transcript.id}


@dataclass(frozen=True)
class Wish:
    """What a caller asked for."""

    persona: str | None
    voice: str | None
    prompt: str | None
    seed: int | None
    max_seconds: float
    record: bool


def router(service: Service, chats: Chats, listener: Listener, speaker: Speaker) -> APIRouter:
    """The route."""
    kind = bounded(service.settings.most_upload_bytes)
    routes = APIRouter(prefix="/v1", tags=["audio"], route_class=kind, responses=REFUSED)
    reading = Turnstile(MOST_READ_AT_ONCE)
    audio = {"schema": {"type": "string", "format": "binary"}}

    @routes.post("/respond", response_model=RespondResponse, responses={200: {"content": {"audio/wav": audio}}})
    async def respond(
        request: Request,
        file: Annotated[UploadFile, File(description="The user's speech, in any usual format.")],
        mode: Annotated[Literal["duplex", "cascade"] | None, Form(description="Default: duplex, if served.")] = None,
        persona: Annotated[str | None, Form(max_length=200)] = None,
        voice: Annotated[str | None, Form(max_length=200, description="A voice of the mode's, by name.")] = None,
        prompt: Annotated[str | None, Form(max_length=20_000, description="Another role than the persona's.")] = None,
        seed: Annotated[
            int | None, Form(ge=0, lt=1 << 32, description="Duplex: the same seed, the same answer.")
        ] = None,
        max_seconds: Annotated[
            float, Form(ge=0, le=MOST_TAIL_SECONDS, allow_inf_nan=False, description="Duplex: after the user's end.")
        ] = 16.0,
        response_format: Annotated[
            Literal["wav", "json", "stream"], Form(description="stream: a WAV, sent while it is made.")
        ] = "wav",
        record: Annotated[bool, Form(description="Keep both sides' sound in the history.")] = False,
    ) -> Response:
        """Answer a recording: a WAV (24 kHz, 16 bit, mono), JSON with the text, or a WAV sent while it is made.

        A duplex answer begins with the user's first frame, and runs on after the user's end until the agent is quiet;
        a cascade's answer is the answer alone. The header x-session-id names it in the history.
        """
        chosen_mode = mode or service.modes[0]
        wish = Wish(persona or None, voice or None, prompt, seed, max_seconds, record)
        answer = Answer(chosen_mode, service.persona(wish.persona).name)
        if chosen_mode == "duplex":
            async with reading:
                user = await asyncio.to_thread(read_audio, file.file, MOST_INPUT_SECONDS)
            pieces = _duplex(service, user, wish, answer, request)
        else:
            answer.transcript = service.history.begin("respond", persona=answer.persona)
            pieces = _cascade(chats, listener, speaker, file, wish, answer)
        if response_format == "stream":
            first = await begun(pieces)
            return PatientResponse(_as_stream(first), service, "audio/wav", answer.headers)
        async with aclosing(pieces):
            pcm = np.concatenate([np.zeros(0, np.float32), *[piece async for piece in pieces]])
        # Megabytes may become base64 here, which takes longer than a frame.
        return await asyncio.to_thread(_whole, answer, pcm, response_format)

    return routes


def _whole(answer: Answer, pcm: np.ndarray, form: str) -> Response:
    wav = wav_header(len(pcm)) + pcm16(pcm).tobytes()
    if form == "wav":
        return Response(wav, media_type="audio/wav", headers=answer.headers)
    return JSONResponse(_as_json(answer, len(pcm), wav).model_dump(), headers=answer.headers)


def _as_json(answer: Answer, n_samples: int, wav: bytes) -> RespondResponse:
    return RespondResponse(
        text=answer.text.strip(),
        heard=answer.heard,
        mode=answer.mode,
        persona=answer.persona,
        voice=answer.voice,
        seed=answer.seed,
        stopped=answer.stopped,
        input_seconds=round(answer.input_seconds, 3),
        output_seconds=round(n_samples / SAMPLE_RATE, 3),
        session_id=None if answer.transcript is None else answer.transcript.id,
        audio=base64.b64encode(wav).decode(),
    )


async def _as_stream(pieces: AsyncGenerator[np.ndarray, None]) -> AsyncGenerator[bytes, None]:
    yield wav_header(None)
    async with aclosing(pieces):
        async for piece in pieces:
            yield pcm16(piece).tobytes()


async def _duplex(
    service: Service, user: np.ndarray, wish: Wish, answer: Answer, request: Request
) -> AsyncGenerator[np.ndarray, None]:
    """The agent's sound in pieces [S]. Raises Busy, and what opening and the model raise."""
    answer.input_seconds = len(user) / SAMPLE_RATE
    settings = service.choose(wish.persona, voice=wish.voice, prompt=wish.prompt, seed=wish.seed)
    answer.voice = wish.voice or (settings.voice if isinstance(settings.voice, str) else None)
    rule = StopRule(round(wish.max_seconds * FRAME_RATE))
    session = service.open("duplex", settings, client="respond", persona=answer.persona, record=wish.record)
    assert session.scribe is not None
    answer.transcript = transcript = session.scribe.transcript
    feeder = Worker("respond")
    pending: list[np.ndarray] = []
    try:
        async with session:
            feeding = asyncio.ensure_future(feeder.run(_feed, session, user, rule.limit))
            try:
                watch = _Watch(user, rule, answer)
                async for event in _in_time(session.events()):
                    frame = watch.saw(event)
                    if frame is not None:
                        pending.append(frame)
                    if len(pending) == _CHUNK_FRAMES or (answer.stopped and pending):
                        yield np.concatenate(pending)
                        pending.clear()
                        if await request.is_disconnected():
                            answer.stopped = "cancelled"
                    if answer.stopped:
                        break
            finally:
                session.close()
                with suppress(Closed):
                    await feeding
    finally:
        feeder.close()
        session.close()
        await asyncio.shield(transcript.settle())


async def _in_time(events: EventStream) -> AsyncGenerator[Event, None]:
    """The events; raises Unavailable when they take too long in all."""
    # Not `asyncio.timeout` around all of it: whoever reads a response may be another task than whoever began it.
    until = time.monotonic() + MOST_WAIT_SECONDS
    while True:
        try:
            yield await asyncio.wait_for(anext(events), until - time.monotonic())
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Unavailable(f"the answer was not there after {MOST_WAIT_SECONDS:.0f} s; ask for less") from None


def _feed(session: Session, user: np.ndarray, tail_frames: int) -> None:
    """The recording and the silence after it, as fast as it is heard. Raises Closed when enough was heard."""
    silence = np.zeros((frames_in(len(user)) + tail_frames) * FRAME_SAMPLES - len(user), np.float32)
    whole = np.concatenate([user, silence])
    step = _FEED_FRAMES * FRAME_SAMPLES
    for start in range(0, len(whole), step):
        session.feed(whole[start : start + step])
    session.finish()


class _Watch:
    """Follows an answer event by event, until it is over."""

    def __init__(self, user: np.ndarray, rule: StopRule, answer: Answer) -> None:
        self._user = user
        self._answer = answer
        self._text = ""
        # It reads text from tokens, which the seam does not show: 1 stands for text, and 0 for padding.
        self._silence = SilenceWatch(rule, padding=(0,))
        self._n_frames = 0

    def saw(self, event: Event) -> np.ndarray | None:
        """The agent's frame, if it is one. Raises what the conversation failed of."""
        if isinstance(event, Ready):
            self._answer.seed = event.seed
        elif isinstance(event, AgentText):
            self._answer.text += event.text
            self._text = event.text
        elif isinstance(event, Error):
            raise event.error
        elif isinstance(event, Ended):
            self._answer.stopped = self._answer.stopped or ("limit" if event.reason == "finished" else event.reason)
            if event.reason not in ("finished", "closed"):
                raise Unavailable(f"the conversation ended before its time ({event.reason}); try again")
        elif isinstance(event, Audio):
            return self._frame(event)
        return None

    def _frame(self, event: Audio) -> np.ndarray:
        at = self._n_frames * FRAME_SAMPLES
        heard = self._user[at : at + FRAME_SAMPLES]
        heard = np.pad(heard, (0, FRAME_SAMPLES - len(heard)))
        frame = AgentFrame(self._n_frames, event.pcm, self._text, np.array([bool(self._text)], np.int32), 0.0)
        self._text = ""
        self._n_frames += 1
        over = self._silence.is_over(heard, frame, self._n_frames - frames_in(len(self._user)))
        if over == "silence":  # the limit is the end of what it is fed, and its last words come before `Ended`
            self._answer.stopped = over
        return event.pcm


async def _cascade(
    chats: Chats,
    listener: Listener,
    speaker: Speaker,
    file: UploadFile,
    wish: Wish,
    answer: Answer,
) -> AsyncGenerator[np.ndarray, None]:
    """The answer's sound in pieces [S], once it is known what to say. Raises AudioError where nobody speaks."""
    if wish.prompt is not None or wish.seed is not None or wish.record:
        raise UsageError("prompt, seed and record are for the duplex mode; the cascade takes a persona and a voice")
    transcript = answer.transcript
    assert transcript is not None
    plan = speaker.plan(wish.voice, answer.persona)
    await speaker.check(plan)
    answer.voice = plan.voice
    said = []
    async with aclosing(listener.utterances(file.file, plan.language, MOST_INPUT_SECONDS)) as found:
        async for one in found:
            if isinstance(one, Utterance):
                said.append(one.text)
            else:
                answer.input_seconds = one
    answer.heard = " ".join(said)
    if not said:
        raise AudioError(f"nobody is heard to speak in the recording ({answer.input_seconds:.1f} s)")
    transcript.say("user", answer.heard)
    chat = chats.stateless(answer.persona)
    try:
        async with aclosing(chat.answer(answer.heard)) as happenings:
            async for happening in happenings:
                if happening.error is not None:
                    raise happening.error
                answer.text = str(happening.about.get("response", ""))
        transcript.say("assistant", answer.text, persona=answer.persona)
        async with aclosing(speaker.read(answer.text, plan, "pcm")) as pieces:
            async for piece in pieces:
                yield np.frombuffer(piece, "<i2").astype(np.float32) / 32767
        answer.stopped = "finished"
    finally:
        await chat.close()
        await asyncio.shield(transcript.settle())
