"""Who answers in a duplex model's place: a language model or a function, and the voice that says what it answers."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

from personaplex.cascade.engine import Message, Synthesiser
from personaplex.cascade.session import BREVITY, Engines, chosen
from personaplex.cascade.worker import Worker
from personaplex.errors import EngineError, PersonaError
from personaplex.persona import Parts, Persona

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""How long a function may take to answer, and for each piece of its answer."""

Answer: TypeAlias = "str | Awaitable[str | None] | AsyncIterator[str] | None"
Delegate: TypeAlias = "Callable[[str, Sequence[Message]], Answer]"
"""From what the user said, and what was said before (beginning with the role, a system message), to an answer.

Pieces of text are said as they come; None lets the model itself answer. One that blocks does so in a thread.
"""


class Deputy:
    """`delegate` is a function, or a language model by NAME[:MODEL].

    Of `parts`, the synthesiser, voice and language say what it answers; not `aloud`, the model itself is made to. A
    language model also has their temperature, max_tokens and style. Raises UsageError, EngineError, PersonaError or
    SynthesisError for what cannot be used.
    """

    def __init__(
        self,
        delegate: Delegate | str,
        parts: Parts = Parts(),  # noqa: B008 - frozen
        *,
        aloud: bool = True,
    ) -> None:
        self.parts = chosen(Persona("deputy", ""), parts)
        self.loop = asyncio.new_event_loop()
        self.voice: Synthesiser | None = None
        self._delegate = delegate
        self._engines = Engines()
        self._thread = threading.Thread(target=self.loop.run_forever, name="personaplex-deputy", daemon=True)
        self._thread.start()
        try:
            self.run(self._open(aloud))
        except BaseException:
            self.close()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises; it is done in the deputy's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _open(self, aloud: bool) -> None:
        if isinstance(self._delegate, str):
            await self._engines.thinker(self._delegate)
        if aloud:
            self.voice = await self._engines.synthesiser(self.parts.synthesiser or "")
            asked = {
                "voice": (self.parts.voice, self.voice.voices),
                "language": (self.parts.language, self.voice.languages),
            }
            for what, (choice, known) in asked.items():
                if choice is not None and known and choice not in known:
                    raise PersonaError(
                        f"the synthesiser {self.parts.synthesiser} has no {what} {choice!r}; it has {', '.join(known)}"
                    )

    async def answer(
        self, text: str, role: str, before: Sequence[Message], seed: int | None, worker: Worker
    ) -> AsyncGenerator[str, None]:
        """Pieces of what is to be said; nothing to let the model answer. A function begins in the `worker`'s thread."""
        prompt = " ".join(filter(None, (role, self.parts.style, BREVITY)))
        history = [Message("system", prompt), *before]
        patience = None if isinstance(self._delegate, str) else PATIENCE_SECONDS
        if isinstance(self._delegate, str):
            thinker = await self._engines.thinker(self._delegate)
            made: Any = thinker.answer(
                [*history, Message("user", text)],
                temperature=self.parts.temperature,
                max_tokens=self.parts.max_tokens,
                seed=seed,
            )
        else:
            made = await _within(patience, worker.run(self._delegate, text, history))
            if inspect.isawaitable(made):
                made = await _within(patience, made)
        if isinstance(made, str):
            yield made
        elif isinstance(made, AsyncIterator):
            try:
                while (piece := await _within(patience, anext(made, None))) is not None:
                    yield piece
            finally:
                if isinstance(made, AsyncGenerator):
                    await made.aclose()
        elif made is not None:
            raise EngineError(f"the delegate answered with {type(made).__name__}; expected text, pieces of it, or None")

    def close(self) -> None:
        """Free the engines, end the thread. Harmless when it has been closed."""
        if self.loop.is_closed():
            return
        self.run(self._engines.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _within(seconds: float | None, work: Awaitable[T]) -> T:
    """What `work` gives. Raises EngineError when that takes too long."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise  # its own
        raise EngineError(f"the delegate gave nothing for {seconds:g} s") from error
