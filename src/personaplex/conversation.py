"""The seam: what a live conversation is to whoever holds it, and what a backend is to whoever opens one.

Server and command line know this file and nothing below it; a backend is anything that keeps these promises (they are
tests: `tests/contract`). Nothing here waits for a model but reading events, becoming ready and `feed`; nothing here
knows MLX.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

import numpy as np

from personaplex.errors import PersonaPlexError
from personaplex.guard import Kind
from personaplex.steps import StepMeasure

if TYPE_CHECKING:
    from personaplex.engine.sampling import Sampling
    from personaplex.voice import Voice

VoiceChoice: TypeAlias = "str | Path | Voice | None"
"""A name, a `.pt`, `.safetensors` or audio file, a Voice; empty for none, None for what it would be anyway."""

PromptChoice: TypeAlias = "str | Sequence[int] | None"
"""A preset's name, a role text, token ids; empty for none, None for what it would be anyway."""

EndReason = Literal["closed", "finished", "vanished", "unread", "shutdown", "error"]
"""Why a conversation ended: its owner closed it; its input was heard to the end; nobody held it any more; nobody read
its events; the backend was closed; something went wrong (an `Error` event says what)."""


@dataclass(frozen=True)
class Settings:
    """How a conversation starts. None is the backend's default, an empty voice or prompt none at all.

    `voice`: a name, a `.pt`, `.safetensors` or audio file, or a Voice. `prompt`: a preset's name, a role text, or token
    ids. `seed`: the same seed and audio give the same conversation; default a fresh one. `sampling`: default the
    model's own; a mapping changes parts of it.
    """

    voice: VoiceChoice = None
    prompt: PromptChoice = None
    seed: int | None = None
    sampling: Sampling | Mapping[str, float | int | bool] | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do beyond audio in, audio and text out. Asking for the rest raises `Unsupported`."""

    full_duplex: bool = False
    text_input: bool = False
    cancel: bool = False
    update: bool = False
    keep_history: bool = False
    user_text: bool = False
    tools: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened at `frame`: frames of 80 ms that the agent has lived since it was ready."""

    frame: int


@dataclass(frozen=True)
class Ready(Event):
    """The agent has read voice and prompt and listens; sent again after an update. `seed` repeats the conversation.

    `kept`: it was an update, and what was said before is still remembered.
    """

    seed: int
    kept: bool = False


@dataclass(frozen=True)
class Audio(Event):
    """80 ms of the agent: `pcm` [1920] float32 at 24 kHz, for the user's frame of the same number.

    `measure` is what the model tells of the step it came from; None where no model made it, or none was asked.
    """

    pcm: np.ndarray = field(repr=False, compare=False)
    measure: StepMeasure | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class AgentText(Event):
    """Text that the agent's speech completed in this frame."""

    text: str


@dataclass(frozen=True)
class UserText(Event):
    """What the user said, as understood so far; `final` when it will not change any more."""

    text: str
    final: bool


@dataclass(frozen=True)
class UserStarted(Event):
    """The user began to speak."""


@dataclass(frozen=True)
class UserStopped(Event):
    """The user has stopped speaking."""


@dataclass(frozen=True)
class AgentStarted(Event):
    """The agent began to speak."""


@dataclass(frozen=True)
class AgentEnded(Event):
    """The agent has been quiet long enough for its turn to be over."""


@dataclass(frozen=True)
class Interrupted(Event):
    """The agent's turn ended because the user spoke into it, or because it was cancelled."""


@dataclass(frozen=True)
class AnswerBegan(Event):
    """The agent thinks about an answer; nothing of it is heard yet. A duplex model has no answers."""


@dataclass(frozen=True)
class AnswerOver(Event):
    """The answer was heard to its end, or `dropped`, or there was nothing to say."""

    dropped: bool


@dataclass(frozen=True)
class ToolCall(Event):
    """The agent wants `name` called with `arguments` (JSON); the result goes with `call_id`."""

    name: str
    arguments: str
    call_id: str = ""


@dataclass(frozen=True)
class Overrun(Event):
    """Input came faster than it was heard: the oldest `dropped` unheard frames were shed, `total` since the start."""

    dropped: int
    total: int


@dataclass(frozen=True)
class Degenerate(Event):
    """What the agent puts out is no speech any more: `kind` names the sign."""

    kind: Kind


@dataclass(frozen=True)
class Error(Event):
    """What went wrong. `Ended` follows if the conversation cannot go on."""

    error: PersonaPlexError


@dataclass(frozen=True)
class Ended(Event):
    """The last event of every conversation."""

    reason: EndReason


class Mailbox:
    """Events on their way from a backend to one reader. The backend holds this; the reader an `EventStream`."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._unread = 0
        self._changed = threading.Condition()
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._ended = False

    def put(self, event: Event) -> int:
        """Add an event (from any thread) and wake the reader; nothing follows `Ended`. How many `Audio` are unread."""
        with self._changed:
            if not self._ended:
                self._events.append(event)
                self._unread += isinstance(event, Audio)
                self._ended = isinstance(event, Ended)
            self._changed.notify_all()
            sleepers, self._sleepers = self._sleepers, []
            unread = self._unread
        for loop, future in sleepers:
            with suppress(RuntimeError):  # a loop that was closed has nobody to wake
                loop.call_soon_threadsafe(_wake, future)
        return unread

    def clear(self) -> None:
        """Forget what nobody has read."""
        with self._changed:
            self._events.clear()
            self._unread = 0

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None when there is none within `timeout` seconds, or after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._ended, timeout)
            return self._next()

    async def get_async(self) -> Event | None:
        """The next event; None after the last."""
        while True:
            with self._changed:
                if self._events or self._ended:
                    return self._next()
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._sleepers.append((loop, future))
            try:
                await future
            finally:
                with self._changed:  # whoever gave up waiting (a timeout) is not to be woken
                    self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[1] is not future]

    def _next(self) -> Event | None:
        event = self._events.popleft() if self._events else None
        self._unread -= isinstance(event, Audio)
        return event


class EventStream:
    """A conversation's events in order: `for` blocks, `async for` awaits; both end after `Ended`.

    It holds its `owner`: a conversation is not forgotten while somebody may still read it.
    """

    def __init__(self, mailbox: Mailbox, owner: object) -> None:
        self._mailbox = mailbox
        self._owner = owner

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None when there is none within `timeout` seconds, or after the last."""
        return self._mailbox.get(timeout)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self._mailbox.get()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._mailbox.get_async()
        if event is None:
            raise StopAsyncIteration
        return event


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Conversation(Protocol):
    """One open conversation. Any thread may call anything; `with` and `async with` wait until it is ready, and close.

    Every method but `events` and `close` raises `Closed` once the conversation has ended.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this conversation can do."""

    def send(self, pcm: np.ndarray) -> None:
        """Give the user's sound, [S] of any size (24 kHz mono, floats or int16), as it is recorded. Never waits.

        What is too much to be heard in time is shed, oldest first, and told as `Overrun`. Raises AudioError for other
        types and for samples that are not finite, or far beyond full scale; nothing of such a piece is heard.
        """

    def feed(self, pcm: np.ndarray, timeout: float | None = None) -> None:
        """The same, waiting until there is room: for recordings. Raises TimeoutError after `timeout` seconds in all."""

    def send_text(self, text: str) -> None:
        """Give the agent a text that the user typed, to take up as its backend can: a duplex agent says it.

        Raises UsageError for more than can wait.
        """

    def cancel(self) -> None:
        """Make the agent stop what it is saying: `Interrupted` and `AgentEnded` follow. Harmless when it is quiet.

        Text that was given to it and not taken up yet is dropped.
        """

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None, keep_history: bool = False) -> None:
        """Change voice or prompt at the agent's next pause, and forget what was said; `Ready` is sent again.

        With `keep_history` what was said is remembered, and what is named here is read after it. One that cannot be
        used is told as `Error`, and the conversation goes on as it was. One that is followed by another before it was
        read may be left out. Raises UsageError for `keep_history` with nothing to read.
        """

    def events(self) -> EventStream:
        """The one stream of this conversation's events; as long as it is held, the conversation is."""

    def finish(self) -> None:
        """No more input: hear what was given (a last partial frame padded with silence), then end."""

    def close(self) -> None:
        """End now; what was not heard yet is dropped. Harmless when it has ended."""

    def __enter__(self) -> Self:
        """Wait until ready. Raises what made it impossible."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""

    async def __aenter__(self) -> Self:
        """Wait until ready. Raises what made it impossible."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


class Backend(Protocol):
    """Whatever conversations can be held with."""

    @property
    def capabilities(self) -> Capabilities:
        """What its conversations can do."""

    def open(self, settings: Settings = ...) -> Conversation:
        """Begin a conversation; returns at once, and `Ready` or `Ended` follows. Raises Busy when all are taken."""

    def close(self) -> None:
        """End every conversation. Harmless when it has been closed."""
