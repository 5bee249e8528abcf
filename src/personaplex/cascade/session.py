"""A conversation in text, and its answers in speech: `ChatSession`, for programs that bring their own ears.

async with ChatSession("claudia") as session:
    async for token in session.say("Hello!"):
        print(token, end="")
    async for piece in session.speak("Good to see you."):
        play(piece.pcm, piece.rate)
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from personaplex.cascade.engine import Message, Piece, Recogniser, Synthesiser, Thinker
from personaplex.cascade.registry import default_recogniser, open_recogniser, open_synthesiser, open_thinker
from personaplex.cascade.sentences import SentenceSplitter
from personaplex.cascade.speakable import speakable
from personaplex.cascade.worker import Worker
from personaplex.errors import ConversationError, PersonaError
from personaplex.persona import Parts, Persona, read_personas

T = TypeVar("T")

BREVITY = "You are spoken to and heard: answer in a few short sentences, without lists, markup, emoji or code."
"""What every role is told besides."""

DEFAULTS = Parts(llm="responder", synthesiser="flite", temperature=0.7, max_tokens=120)
"""What nobody chose, beside the recogniser: all of it works offline. The responder is no language model."""

MOST_MESSAGES = 200
"""Of a conversation's past so many are sent; older ones are remembered, and sent no more."""


def chosen(persona: Persona, overrides: Parts = Parts(), defaults: Parts = DEFAULTS) -> Parts:  # noqa: B008 - frozen
    """All parts of a persona: what is asked for goes before its own choice, and that before the defaults."""
    own = persona.cascade
    if overrides.synthesiser not in (None, own.synthesiser):
        own = dataclasses.replace(own, voice=None)  # another synthesiser has other voices
    layers = [dataclasses.asdict(parts) for parts in (defaults, own, overrides)]
    parts = Parts(**{name: value for layer in layers for name, value in layer.items() if value is not None})
    return parts if parts.recogniser else dataclasses.replace(parts, recogniser=default_recogniser())


def system_prompt(persona: Persona) -> str:
    """What a language model is told of its role."""
    return " ".join(filter(None, (persona.prompt, persona.cascade.style, BREVITY)))


class Engines:
    """Engines by choice ("ollama:llama3.2:1b"), each made once, and shared by conversations until they are closed."""

    def __init__(self) -> None:
        self._worker = Worker("loader")
        self._making = asyncio.Lock()
        self._thinkers: dict[str, Thinker] = {}
        self._recognisers: dict[str, Recogniser] = {}
        self._synthesisers: dict[str, Synthesiser] = {}

    async def thinker(self, choice: str) -> Thinker:
        """The language model `choice`; it was checked. Raises UsageError or EngineError."""
        async with self._making:
            if choice not in self._thinkers:
                made = await self._worker.run(open_thinker, choice)
                try:
                    await made.check()
                except BaseException:
                    await made.close()
                    raise
                self._thinkers[choice] = made
            return self._thinkers[choice]

    async def recogniser(self, choice: str) -> Recogniser:
        """The recogniser `choice`. Raises UsageError or EngineError."""

        def make(choice: str) -> Recogniser:
            recogniser = open_recogniser(choice)
            recogniser.listen().close()  # the first utterance loads what the others use
            return recogniser

        return await self._made(self._recognisers, make, choice)

    async def synthesiser(self, choice: str) -> Synthesiser:
        """The synthesiser `choice`. Raises UsageError, EngineError or SynthesisError."""
        return await self._made(self._synthesisers, open_synthesiser, choice)

    async def _made(self, made: dict[str, T], make: Callable[[str], T], choice: str) -> T:
        async with self._making:
            if choice not in made:
                made[choice] = await self._worker.run(make, choice)
            return made[choice]

    async def close(self) -> None:
        """Free all of them."""
        for thinker in self._thinkers.values():
            await thinker.close()
        frees = [e.close for e in self._recognisers.values()] + [e.close for e in self._synthesisers.values()]
        for free in frees:
            await self._worker.run(free)
        for made in (self._thinkers, self._recognisers, self._synthesisers):
            made.clear()
        self._worker.close()


class ChatSession:
    """One conversation with a persona, remembered from its first turn on. One turn at a time, in one event loop.

    `parts` go before what the persona chooses. Of `engines` that are given, somebody else takes care.
    Raises PersonaError for an unknown persona, UsageError or EngineError for engines that cannot be used.
    """

    def __init__(
        self,
        persona: str | Persona = "assistant",
        *,
        personas: Mapping[str, Persona] | None = None,
        parts: Parts = Parts(),  # noqa: B008 - frozen
        engines: Engines | None = None,
        seed: int | None = None,
    ) -> None:
        self._personas = read_personas() if personas is None else personas
        self._overrides = parts
        self._engines = engines or Engines()
        self._owns_engines = engines is None
        self._seed = seed
        self._worker = Worker("voice")
        self._history: list[Message] = []
        self._is_answering = False
        self.persona = self._find(persona)

    def _find(self, persona: str | Persona) -> Persona:
        if isinstance(persona, Persona):
            return persona
        if persona not in self._personas:
            raise PersonaError(f"unknown persona {persona!r}; there are {', '.join(sorted(self._personas))}")
        return self._personas[persona]

    @property
    def parts(self) -> Parts:
        """Engines, voice and numbers that are in use."""
        return chosen(self.persona, self._overrides)

    @property
    def history(self) -> tuple[Message, ...]:
        """What was said by both, without the role prompt."""
        return tuple(self._history)

    async def say(self, text: str) -> AsyncGenerator[str, None]:
        """Tell the agent something: its answer, token by token, remembered as far as it was read.

        Raises EngineError when the language model fails (what came before is remembered; where nothing came, the
        question is not), ConversationError when the last answer is still being read.
        """
        if self._is_answering:
            raise ConversationError("the last answer is still coming; read it to its end, or close it, and ask again")
        self._is_answering = True
        asked = Message("user", text)
        self._history.append(asked)
        try:
            parts = self.parts
            thinker = await self._engines.thinker(parts.llm or "")
            messages = [Message("system", system_prompt(self.persona)), *self._history[-MOST_MESSAGES:]]
            answer = thinker.answer(
                messages, temperature=parts.temperature, max_tokens=parts.max_tokens, seed=self._seed
            )
            async with aclosing(answer) as tokens:
                async for token in tokens:
                    self._remember(token)
                    yield token
        finally:
            self._is_answering = False
            if self._history and self._history[-1] is asked:  # nobody answered: as if it had not been said
                self._history.pop()

    def _remember(self, token: str) -> None:
        if self._history[-1].role == "user":
            self._history.append(Message("assistant", ""))
        self._history[-1] = Message("assistant", self._history[-1].content + token)

    def heard(self, text: str) -> None:
        """The last answer was cut off: only `text` of it was heard, and that is what is remembered."""
        if self._history and self._history[-1].role == "assistant":
            self._history[-1] = Message("assistant", text or "...")

    def restore(self, messages: Iterable[Message]) -> None:
        """Go on from what was said in another session, instead of what was said in this one."""
        self._history = list(messages)

    def rewind(self, n_messages: int) -> None:
        """Forget all but the first `n_messages` of the history."""
        del self._history[n_messages:]

    async def speak(self, text: str | AsyncGenerator[str, None]) -> AsyncGenerator[Piece, None]:
        """Say a text, or tokens as they come (`session.speak(session.say("Hello"))`), sentence by sentence.

        While one is made into sound, the next few are thought. Raises SynthesisError and the like; markup, emoji and
        code are left out.
        """
        parts = self.parts
        voice = await self._engines.synthesiser(parts.synthesiser or "")
        async with aclosing(_ahead(sentences_of(text))) as sentences:
            async for sentence in sentences:
                if said := speakable(sentence):
                    pieces = self._worker.iterate(partial(voice.say, said, parts.voice, parts.language))
                    async with aclosing(pieces) as made:
                        async for piece in made:
                            yield piece

    def switch_persona(self, persona: str | Persona, *, parts: Parts | None = None, keep_history: bool = True) -> None:
        """Go on as somebody else, from the next turn on. Raises PersonaError naming those there are."""
        self.persona = self._find(persona)
        self._overrides = self._overrides if parts is None else parts
        if not keep_history:
            self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self._history.clear()

    async def close(self) -> None:
        """End, with everything that was begun for this session."""
        self._worker.close()
        if self._owns_engines:
            await self._engines.close()

    async def __aenter__(self) -> Self:
        """Make the language model and ask whether it can answer. Raises EngineError."""
        try:
            await self._engines.thinker(self.parts.llm or "")
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def sentences_of(text: str | AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The sentences of a text, or of tokens as they come; where those fail, what came before is a sentence, too."""
    splitter = SentenceSplitter()
    failure: Exception | None = None
    if isinstance(text, str):
        for sentence in splitter.push(text):
            yield sentence
    else:
        try:
            async with aclosing(text) as tokens:
                async for token in tokens:
                    for sentence in splitter.push(token):
                        yield sentence
        except Exception as error:
            failure = error
    for sentence in splitter.flush():
        yield sentence
    if failure is not None:
        raise failure


async def _ahead(items: AsyncGenerator[str, None], most: int = 4) -> AsyncGenerator[str, None]:
    """The same items, of which as many as `most` are got before they are asked for."""
    queue: asyncio.Queue[str | Exception | None] = asyncio.Queue(most)

    async def get() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    await queue.put(item)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    getting = asyncio.create_task(get(), name="personaplex-ahead")
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        getting.cancel()
        await asyncio.gather(getting, return_exceptions=True)
