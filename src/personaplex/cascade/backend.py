"""The cascade as a backend: conversations with any recogniser, language model and voice, behind the seam.

    with Cascade(parts=Parts(llm="ollama:llama3.2:1b")) as backend, backend.open(Settings(prompt="sage")) as call:
        ...

One thread runs the event loop of all conversations; each has a thread for its recogniser and one for its voice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Self

import numpy as np

from personaplex.audio import as_chunk
from personaplex.by_turns import Directions, Message, TurnTaking
from personaplex.cascade.conversation import Manner, Role, Talk
from personaplex.cascade.session import Engines
from personaplex.conversation import Capabilities, EndReason, EventStream, PromptChoice, Settings, VoiceChoice
from personaplex.errors import Busy, Closed, PersonaError, UsageError
from personaplex.persona import Parts, Persona, read_personas

MOST_TEXT = 20_000
"""Characters of typed text that are taken at once."""

ASSISTANT = Persona("assistant", "You are a helpful assistant.")
"""Who speaks where nobody is asked for, and no persona has that name."""

CAPABILITIES = Capabilities(text_input=True, cancel=True, update=True, keep_history=True, user_text=True, tools=True)


class Cascade:
    """At most `slots` conversations. `parts` go before what personas choose.

    In `Settings`, and in a conversation's `update`, a prompt that is the name of one of `personas` is that persona,
    with its engines and its voice; another text is another role prompt for whoever speaks (at first `assistant`). A
    voice is one of the synthesiser's, or SYNTHESISER/VOICE. Of the sampling there is only `text_temperature`.
    """

    capabilities = CAPABILITIES

    def __init__(
        self,
        slots: int = 4,
        *,
        parts: Parts = Parts(),  # noqa: B008 - frozen
        personas: Mapping[str, Persona] | None = None,
        manner: Manner = Manner(),  # noqa: B008 - frozen
    ) -> None:
        if slots < 1:
            raise UsageError(f"a cascade needs a slot at least, not {slots}")
        self.slots = slots
        self._parts = parts
        self._personas = read_personas() if personas is None else personas
        self._manner = manner
        self._lock = threading.Lock()
        self._talks: dict[Talk, Future[None]] = {}
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._engines = Engines()
        self._thread = threading.Thread(target=self._run, name="personaplex-cascade", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def open(self, settings: Settings = Settings()) -> CascadeCall:  # noqa: B008 - frozen
        """Begin a conversation; returns at once. Raises Busy when all slots are taken, and for unusable settings."""
        role = self._role(
            Role(self._personas.get("assistant", ASSISTANT), self._parts), settings.voice, settings.prompt
        )
        role = dataclasses.replace(role, parts=_with_sampling(role.parts, settings.sampling))
        with self._lock:
            if self._closed:
                raise Closed("this backend was closed")
            in_use = sum(talk.ended is None for talk in self._talks)
            if in_use == self.slots:
                raise Busy(in_use, self.slots)
            talk = Talk(self._engines, role, settings.seed, self._manner, self._loop)
            done = asyncio.run_coroutine_threadsafe(talk.run(), self._loop)
            self._talks[talk] = done
        done.add_done_callback(lambda _: self._forget(talk))
        return CascadeCall(self, talk)

    def _forget(self, talk: Talk) -> None:
        with self._lock:
            self._talks.pop(talk, None)

    def _role(self, before: Role, voice: VoiceChoice, prompt: PromptChoice) -> Role:
        """Who speaks after a change. Raises PersonaError for what a cascade cannot use."""
        persona, parts = before.persona, before.parts
        if prompt is not None:
            if not isinstance(prompt, str):
                raise PersonaError("the cascade's prompts are texts or names of personas, not token ids")
            if prompt in self._personas:
                persona, parts = self._personas[prompt], dataclasses.replace(parts, voice=self._parts.voice)
            else:
                persona = dataclasses.replace(persona, prompt=prompt)
        if voice is not None:
            if not isinstance(voice, str):
                raise PersonaError("the cascade's voices are names of a synthesiser's voices; give one, or none")
            synthesiser, slash, name = voice.rpartition("/")
            parts = dataclasses.replace(
                parts, voice=name or None, synthesiser=synthesiser if slash else parts.synthesiser
            )
        return Role(persona, parts)

    def update(self, talk: Talk, voice: VoiceChoice, prompt: PromptChoice, *, keep_history: bool) -> None:
        """Change a conversation. Raises UsageError for nothing to change, PersonaError for what cannot be used."""
        if keep_history and not voice and not prompt:
            raise UsageError("there is nothing to read: name a voice or a prompt, or do not keep the history")
        talk.ask(lambda before: self._role(before, voice, prompt), keep=keep_history)

    def end(self, talk: Talk, reason: EndReason) -> None:
        """End a conversation, from any thread; its slot is free at once."""
        talk.end(reason)

    def close(self) -> None:
        """End every conversation, free the engines, end the thread. Harmless when it has been closed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            talks = dict(self._talks)
        for talk in talks:
            talk.end("shutdown")

        async def wind_up() -> None:
            await asyncio.gather(*(asyncio.wrap_future(done) for done in talks.values()), return_exceptions=True)
            await self._engines.close()

        asyncio.run_coroutine_threadsafe(wind_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_sampling(parts: Parts, sampling: object) -> Parts:
    if sampling is None:
        return parts
    if not isinstance(sampling, Mapping) or set(sampling) - {"text_temperature"}:
        raise UsageError("of the sampling, a cascade knows only text_temperature")
    return dataclasses.replace(parts, temperature=sampling.get("text_temperature", parts.temperature))


class CascadeCall:
    """A conversation with a `Cascade`; see `personaplex.conversation.Conversation` for what each method promises."""

    capabilities = CAPABILITIES

    def __init__(self, backend: Cascade, talk: Talk) -> None:
        self._backend = backend
        self._talk = talk
        weakref.finalize(self, talk.end, "vanished").atexit = False

    @property
    def seed(self) -> int:
        """The seed that a language model and the responder are given."""
        return self._talk.seed

    def send(self, pcm: np.ndarray) -> None:
        """Give the user's sound as it is recorded; what is too much to be heard in time is shed, oldest first."""
        self._check()
        self._talk.inbox.push(as_chunk(pcm))

    def feed(self, pcm: np.ndarray, timeout: float | None = None) -> None:
        """Give a recording, waiting until there is room for each frame of it."""
        self._check()
        self._talk.inbox.feed(as_chunk(pcm), timeout)

    def send_text(self, text: str) -> None:
        """Say something in writing; the agent answers it aloud."""
        self._check()
        if len(text) > MOST_TEXT:
            raise UsageError(f"the text has {len(text)} characters; at most {MOST_TEXT} are taken at once")
        self._talk.type(text)

    def cancel(self) -> None:
        """Make the agent stop what it is saying, and everything that is made for it."""
        self._check()
        self._talk.cancel()

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None, keep_history: bool = False) -> None:
        """Change voice or persona at the agent's next pause."""
        self._check()
        self._backend.update(self._talk, voice, prompt, keep_history=keep_history)

    def add(self, message: Message) -> None:
        """Put a message into what was said, before the next answer."""
        self._check()
        self._talk.call(self._talk.memory.add, message)

    def forget(self, message: Message) -> None:
        """Take a message out of what was said."""
        self._check()
        self._talk.call(self._talk.memory.forget, message)

    def respond(self, instructions: str | None = None, directions: Directions | None = None) -> None:
        """Have the agent answer what was said so far."""
        self._check()
        self._talk.call(self._talk.respond, instructions, directions)

    def direct(self, directions: Directions) -> None:
        """How answers are made from the next one on: with which tools, among others."""
        self._check()
        self._talk.call(self._talk.direct, directions)

    def truncate(self, text: str) -> None:
        """Of the last answer only `text` was heard."""
        self._check()
        self._talk.call(self._talk.memory.truncate, text)

    def take_turns(self, turns: TurnTaking) -> None:
        """How turns are taken from now on. Raises UsageError for numbers that are out of range."""
        self._check()
        if turns.onset is not None and not 0 <= turns.onset <= 1:
            raise UsageError(f"the onset is {turns.onset}; expected a probability, from 0 to 1")
        if turns.silence_seconds is not None and not 0 <= turns.silence_seconds < 1e6:
            raise UsageError(f"the silence is {turns.silence_seconds} seconds; it must be 0 or more")
        self._talk.call(self._talk.take_turns, turns)

    def begin_turn(self) -> None:
        """By hand: the user begins to speak."""
        self._check()
        self._talk.call(self._talk.begin_turn)

    def end_turn(self) -> None:
        """The user has said what they wanted to."""
        self._check()
        self._talk.call(self._talk.end_turn)

    def drop_turn(self) -> None:
        """Forget what the user is saying."""
        self._check()
        self._talk.call(self._talk.drop_turn)

    def events(self) -> EventStream:
        """The stream of this conversation's events."""
        return EventStream(self._talk.mailbox, self)

    def finish(self) -> None:
        """No more input: hear what was given, then end."""
        self._check()
        self._talk.inbox.finish()

    def close(self) -> None:
        """End now and free the slot."""
        self._talk.end("closed")

    def _check(self) -> None:
        if self._talk.ended is not None:
            raise Closed(f"this conversation has ended ({self._talk.ended})")

    def __enter__(self) -> Self:
        try:
            self._talk.ready.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            ready = asyncio.wrap_future(self._talk.ready)
            # Who stops waiting leaves the future behind; that nobody looks at its exception is no error then.
            ready.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(ready)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
