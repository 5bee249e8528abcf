"""Texts read aloud for callers: whose voice it is, and the bytes of a file as they are made, in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from typing import Any, NamedTuple, cast

from personaplex.cascade.aloud import Unsaid, read_aloud
from personaplex.cascade.engine import Synthesiser
from personaplex.cascade.worker import Worker
from personaplex.errors import PersonaError, UsageError
from personaplex.server.http.sound import Form, SoundStream
from personaplex.server.http.turnstile import Turnstile
from personaplex.server.realtime.configuration import DEFAULT_VOICE, OPENAI_VOICES
from personaplex.server.service import Service

NOBODYS_VOICES = OPENAI_VOICES | {DEFAULT_VOICE}
"""Clients send one of these where nobody chose any: they stand for the default voice, unless a persona is called so."""

MOST_AT_ONCE = 4


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
        async with self._turnstile:
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
