"""Texts read aloud for callers: whose voice it is, and the bytes of a file as they are made, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from typing import Any, NamedTuple, cast

from personaplex.cascade.aloud import Unsaid, read_aloud
from personaplex.cascade.engine import Synthesiser
from personaplex.cascade.worker import Worker
from personaplex.errors import Busy, PersonaError, UsageError
from personaplex.server.http.sound import Form, SoundStream
from personaplex.server.http.turnstile import Turnstile
from personaplex.server.realtime.configuration import DEFAULT_VOICE, OPENAI_VOICES
from personaplex.server.service import Service

NOBODYS_VOICES = OPENAI_VOICES | {DEFAULT_VOICE}
"""Clients send one of these where nobody chose any: they stand for the default voice, unless a persona is called so."""

MOST_AT_ONCE = 4

MOST_READERS = 32
"""Who wait for a file or read one."""

MOST_AHEAD = 64 << 20
"""Bytes that are made and not read yet, of all files together: beyond them making waits for the readers after all."""


class Plan(NamedTuple):
    """What speaks, and with which voice; None for its first. `asked`: the voice is what a caller wrote."""

    synthesiser: str
    voice: str | None
    language: str | None
    asked: bool = False


class Speaker:
    """The cascade's synthesisers, for whoever wants a text said. Belongs to one event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turnstile = Turnstile(MOST_AT_ONCE)
        self._readers = 0
        self._ahead = 0
        self._was_read = asyncio.Event()

    def plan(self, voice: str | None, persona: str | None = None, language: str | None = None) -> Plan:
        """Who speaks: a persona, by its name as a voice too, or the default one, with a voice of its synthesiser.

        Raises PersonaError, Unavailable.
        """
        if persona is None and voice in self._service.personas:
            persona, voice = voice, None
        if voice is not None and voice.lower() in NOBODYS_VOICES:
            voice = None
        parts = self._service.parts(persona)
        return Plan(parts.synthesiser or "", voice or parts.voice, language or parts.language, voice is not None)

    async def check(self, plan: Plan) -> Synthesiser:
        """The synthesiser of a plan. Raises PersonaError for a voice that it does not have, EngineError, UsageError.

        Only names are taken, and only those it lists: some synthesisers would open a file of any name.
        """
        synthesiser = await self._service.engines.synthesiser(plan.synthesiser)
        if plan.asked and plan.voice not in synthesiser.voices:
            known = ", ".join([*synthesiser.voices, *self._service.personas])
            raise PersonaError(f"unknown voice {(plan.voice or '')[:80]!r}; there are {known}")
        if plan.language is not None and synthesiser.languages and plan.language not in synthesiser.languages:
            raise UsageError(f"{plan.synthesiser} does not speak {plan.language[:20]!r}")
        return synthesiser

    async def read(self, text: str, plan: Plan, form: Form, speed: float = 1.0) -> AsyncGenerator[bytes, None]:
        """The file of a text, piece by piece. Raises what `check` raises, Busy, SynthesisError, also midway."""
        if self._readers >= MOST_READERS:
            raise Busy(self._readers, MOST_READERS)
        self._readers += 1
        made: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        making = asyncio.create_task(self._make(text, plan, form, speed, made))
        try:
            while (piece := await made.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                self._count(-len(piece))
                yield piece
        finally:
            self._readers -= 1
            making.cancel()
            await asyncio.wait([making])
            while not made.empty():
                unread = made.get_nowait()
                self._count(-len(unread) if isinstance(unread, bytes) else 0)

    def _count(self, n_bytes: int) -> None:
        self._ahead += n_bytes
        if n_bytes <= 0:
            self._was_read.set()

    async def _make(
        self, text: str, plan: Plan, form: Form, speed: float, made: asyncio.Queue[bytes | Exception | None]
    ) -> None:
        """Make a file ahead of its reader, who must not keep a synthesiser by taking his time; None is its end."""
        try:
            async with self._turnstile, aclosing(self._pieces(text, plan, form, speed)) as pieces:
                async for piece in pieces:
                    while self._ahead > MOST_AHEAD:
                        self._was_read.clear()
                        await self._was_read.wait()
                    self._count(len(piece))
                    made.put_nowait(piece)
        except Exception as error:
            made.put_nowait(error)
        made.put_nowait(None)

    async def _pieces(self, text: str, plan: Plan, form: Form, speed: float) -> AsyncGenerator[bytes, None]:
        synthesiser = await self.check(plan)
        worker = Worker("speaker")

        def made() -> Iterator[bytes]:
            stream, n_samples = SoundStream(form, speed), 0
            said = read_aloud([text], synthesiser, plan.synthesiser, plan.voice, plan.language)
            with closing(cast(Any, said)):
                for piece in said:
                    if isinstance(piece, Unsaid):
                        raise piece.error
                    n_samples += len(piece)
                    yield stream.push(piece)
            if not n_samples:
                raise UsageError("there is nothing to say: the text holds no words")
            yield stream.finish()

        try:
            async with aclosing(worker.iterate(made)) as pieces:
                async for piece in pieces:
                    if piece:
                        yield piece
        finally:
            worker.close()
