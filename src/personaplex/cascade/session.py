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
from typing import Self, TypeVar, cast

from personaplex.by_turns import Directions
from personaplex.cascade.engine import Call, Message, Piece, Recogniser, Synthesiser, Thinker, ToolUser
from personaplex.cascade.registry import default_recogniser, open_recogniser, open_synthesiser, open_thinker
from personaplex.cascade.sentences import SentenceSplitter
from personaplex.cascade.speakable import speakable
from personaplex.cascade.worker import Worker
from personaplex.errors import ConversationError, EngineError, PersonaError, UsageError
from personaplex.persona import Parts, Persona, read_personas

T = TypeVar("T")

BREVITY = "You are spoken to and heard: answer in a few short sentences, without lists, markup, emoji or code."
"""What every role is told besides."""

DEFAULTS = Parts(llm="responder", synthesiser="flite", temperature=0.7, max_tokens=120)
"""What nobody chose, beside the recogniser: all of it works offline. The responder is no language model."""

MOST_MESSAGES = 200
"""Of a conversation's past so many are sent; older ones are remembered, and sent no more."""


def chosen(
    persona: Persona,
    overrides: Parts = Parts(),  # noqa: B008 - frozen
    defaults: Parts = DEFAULTS,
    *,
    listens: bool = True,
) -> Parts:
    """All parts of a persona: what is asked for goes before its own choice, and that before the defaults.

    Which recogniser is the default is looked up on this machine, which takes milliseconds, and the first time nearly a
    second; not where nobody `listens`.
    """
    own = persona.cascade
    if overrides.synthesiser not in (None, own.synthesiser):
        own = dataclasses.replace(own, voice=None)  # another synthesiser has other voices
    layers = [dataclasses.asdict(parts) for parts in (defaults, own, overrides)]
    parts = Parts(**{name: value for layer in layers for name, value in layer.items() if value is not None})
    return parts if parts.recogniser or not listens else dataclasses.replace(parts, recogniser=default_recogniser())


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

    async def parts(self, persona: Persona, overrides: Parts) -> Parts:
        """All parts of a persona, a recogniser among them, which is looked up on this machine."""
        return await self._worker.run(chosen, persona, overrides)

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
        self.directions = Directions()

    def _find(self, persona: str | Persona) -> Persona:
        if isinstance(persona, Persona):
            return persona
        if persona not in self._personas:
            raise PersonaError(f"unknown persona {persona!r}; there are {', '.join(sorted(self._personas))}")
        return self._personas[persona]

    @property
    def parts(self) -> Parts:
        """Engines, voice and numbers that are in use; a recogniser only where one was asked for."""
        return chosen(self.persona, self._overrides, listens=False)

    @property
    def history(self) -> tuple[Message, ...]:
        """What was said by both, without the role prompt."""
        return tuple(self._history)

    async def say(self, text: str) -> AsyncGenerator[str, None]:
        """Tell the agent something: its answer, token by token, remembered as far as it was read.

        Raises EngineError when the language model fails (what came before is remembered; where nothing came, the
        question is not), ConversationError when the last answer is still being read.
        """
        async with aclosing(self.answer(text)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield piece

    async def answer(
        self, text: str = "", instructions: str | None = None, directions: Directions | None = None
    ) -> AsyncGenerator[str | Call, None]:
        """The answer to `text`, or where that is empty to what was said so far, with the tools it wants called.

        `instructions` take the place of the role, `directions` that of the session's. Raises as `say`, and EngineError
        for tools that the language model cannot use.
        """
        if self._is_answering:
            raise ConversationError("the last answer is still coming; read it to its end, or close it, and ask again")
        self._is_answering = True
        asked = Message("user", text)
        if text:
            self._history.append(asked)
        told, n_before = directions or self.directions, len(self._history)
        try:
            role = system_prompt(self.persona) if instructions is None else f"{instructions} {BREVITY}"
            system = Message("system", role)
            answer = await self._consult([system, *_recent(self._history)], told)
            async with aclosing(answer) as pieces:
                async for piece in pieces:
                    self._remember(piece, n_before)
                    yield piece
        finally:
            self._is_answering = False
            if self._history and self._history[-1] is asked:  # nobody answered: as if it had not been said
                self._history.pop()

    async def _consult(self, messages: list[Message], told: Directions) -> AsyncGenerator[str | Call, None]:
        parts = self.parts
        temperature = parts.temperature if told.temperature is None else told.temperature
        max_tokens = parts.max_tokens if told.max_tokens is None else told.max_tokens
        thinker = await self._engines.thinker(parts.llm or "")
        if not told.tools or told.choice == "none":
            answer = thinker.answer(messages, temperature=temperature, max_tokens=max_tokens, seed=self._seed)
            return cast("AsyncGenerator[str | Call, None]", answer)
        if not hasattr(thinker, "consult"):
            raise EngineError(
                f"{thinker.name} cannot call tools; choose a language model behind a server, as chat:MODEL"
            )
        return cast(ToolUser, thinker).consult(
            messages, told.tools, choice=told.choice, temperature=temperature, max_tokens=max_tokens, seed=self._seed
        )

    def _remember(self, piece: str | Call, n_before: int) -> None:
        """A piece of the answer, which is the message after the first `n_before`."""
        if len(self._history) <= n_before:
            self._history.append(Message("assistant", ""))
        last = self._history[-1]
        if isinstance(piece, Call):
            self._history[-1] = last._replace(calls=(*last.calls, piece))
        else:
            self._history[-1] = last._replace(content=last.content + piece)

    def add(self, message: Message) -> None:
        """Put a message into what was said; between two answers."""
        self._history.append(message)

    def forget(self, message: Message) -> int:
        """Take the last message with this role and text out of what was said; where it stood. Raises UsageError."""
        for at in reversed(range(len(self._history))):
            known = self._history[at]
            if (known.role, known.content.strip(), known.call_id) == (
                message.role,
                message.content.strip(),
                message.call_id,
            ):
                del self._history[at]
                return at
        raise UsageError("that was not remembered as a turn of its own, and cannot be forgotten alone")

    def heard(self, text: str, index: int = -1) -> None:
        """An answer, the last one, was cut off: only `text` of it was heard, and that is what is remembered."""
        if -len(self._history) <= index < len(self._history) and self._history[index].role == "assistant":
            answer = self._history[index]
            self._history[index] = answer._replace(content=text or ("" if answer.calls else "..."))

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


def _recent(history: list[Message]) -> list[Message]:
    """As much as is sent: not beginning with the result of a call that is not."""
    first = max(0, len(history) - MOST_MESSAGES)
    while first and first < len(history) and history[first].role == "tool":
        first += 1
    return history[first:]


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
