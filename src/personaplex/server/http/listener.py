"""Recordings of callers written down, utterance by utterance, in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from typing import Any, BinaryIO, cast

from personaplex.audio import LONGEST_SECONDS, stream_audio
from personaplex.cascade.transcription import Counted, Utterance, transcribe
from personaplex.cascade.worker import Worker
from personaplex.errors import UsageError
from personaplex.server.http.turnstile import Turnstile
from personaplex.server.service import Service
from personaplex.units import SAMPLE_RATE

MOST_AT_ONCE = 2


class Listener:
    """The server's recogniser, for whoever sends a recording. Belongs to one event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turnstile = Turnstile(MOST_AT_ONCE)

    async def utterances(
        self, recording: BinaryIO, language: str | None = None, longest_seconds: float = LONGEST_SECONDS
    ) -> AsyncGenerator[Utterance | float, None]:
        """What is said in an open file, and at last how many seconds it had; the file is closed.

        Raises AudioError, UsageError for a language that nobody here hears, EngineError, Busy.
        """
        async with self._turnstile:
            recogniser = await self._service.engines.recogniser(self._service.parts().recogniser or "")
            if language is not None and recogniser.languages and language not in recogniser.languages:
                known = ", ".join(recogniser.languages)
                raise UsageError(f"the recogniser does not know the language {language[:20]!r}; it knows {known}")
            worker = Worker("listener")

            def made() -> Iterator[Utterance | float]:
                with closing(stream_audio(recording, longest_seconds)) as pieces:
                    heard = Counted(pieces)
                    said = transcribe(heard, recogniser, language)
                    with closing(cast(Any, said)):
                        yield from said
                    yield heard.n_samples / SAMPLE_RATE

            try:
                async with aclosing(worker.iterate(made)) as found:
                    async for one in found:
                        yield one
            finally:
                worker.close()
