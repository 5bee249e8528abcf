"""What the engines of the cascade are: who hears, who thinks, who speaks, and how each is described before it is made.

Recognisers and synthesisers are blocking: the cascade calls each from one worker thread of the conversation, never two
calls of one `Listening` or one iterator at a time. Thinkers are asynchronous, as servers are; one that computes in
process wraps its iterator in `personaplex.cascade.worker.Worker.iterate`. An engine is shared by many conversations;
what belongs to one utterance is a `Listening`, or an iterator, and being cancelled means that it is closed.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from personaplex.by_turns import Call, Message, Role, Tool
from personaplex.errors import EngineError, PersonaPlexError, UsageError

Kind: TypeAlias = Literal["recogniser", "thinker", "synthesiser", "end of turn"]
__all__ = [
    "Call", "EndOfTurn", "EngineSpec", "Kind", "Listening", "Message", "Piece", "Recogniser", "Role", "Synthesiser",
    "Thinker", "TimedWord", "Tool", "ToolUser", "Transcript", "as_error", "first_line",
]  # fmt: skip


class TimedWord(NamedTuple):
    """A word as written, and when it was said: seconds from the beginning of its `Listening` or `Piece`."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """What was understood; `words` where the engine times them, `language` where it guesses one (ISO 639-1)."""

    text: str
    words: tuple[TimedWord, ...] = ()
    language: str | None = None


class Listening(Protocol):
    """One utterance being heard."""

    def push(self, pcm: np.ndarray) -> Transcript | None:
        """Hear float32 [S] at the recogniser's rate. All that is understood so far, if that is known and has changed.

        An engine that hears whole utterances keeps the sound and returns None. Raises EngineError.
        """

    def finish(self) -> Transcript:
        """No more sound: all that was understood, an empty text for nothing. Raises EngineError."""

    def close(self) -> None:
        """Give back what this utterance holds, heard to the end or not. Harmless when it has been closed."""


class Recogniser(Protocol):
    """Speech to text. `languages` are ISO 639-1 codes, empty for "whatever its model knows"."""

    @property
    def rate(self) -> int:
        """Samples per second that it hears."""

    @property
    def languages(self) -> Sequence[str]:
        """Languages that can be asked for."""

    def listen(self, language: str | None = None) -> Listening:
        """Begin an utterance; None for the engine's own guess or default. Raises UsageError for another language."""

    def close(self) -> None:
        """Free the model."""


class Thinker(Protocol):
    """Text to text: a language model, or what stands for one."""

    @property
    def name(self) -> str:
        """What answers, as a person should read it ("llama3.2:1b", "rule-based responder (no language model)")."""

    async def check(self) -> None:
        """Whether it can answer: reachable, and its model there. Raises EngineError saying what to do."""

    def answer(
        self,
        messages: Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """Pieces of text as they come; closing the iterator ends the work at once. Raises EngineError, also midway."""

    async def close(self) -> None:
        """Free the model, or the connection."""


class ToolUser(Thinker, Protocol):
    """A language model that can have tools called."""

    def consult(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        *,
        choice: str = "auto",
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[str | Call, None]:
        """As `answer`, with the calls that it wants, each whole. `choice`: auto, none, required, or a tool's name."""


class Piece(NamedTuple):
    """Some speech: float32 [S] at `rate`, and the words that begin in it where the engine times them."""

    pcm: np.ndarray
    rate: int
    words: tuple[TimedWord, ...] = ()


class Synthesiser(Protocol):
    """Text to speech."""

    @property
    def voices(self) -> Sequence[str]:
        """Voices that can be asked for, the default first."""

    @property
    def languages(self) -> Sequence[str]:
        """Languages that can be asked for (ISO 639-1), the default first."""

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """Say one sentence or a few, in pieces as they are made, each [S] of any size; a generator, closed to cancel.

        Raises UsageError for an unknown voice or language, SynthesisError when the text cannot be said.
        """

    def close(self) -> None:
        """Free the model."""


class EndOfTurn(Protocol):
    """Tells the end of a turn from a pause within it. Blocking, and called from many threads at once."""

    def probability(self, pcm: np.ndarray) -> float:
        """Probability that a turn is over of which float32 [S] at 24 kHz are the last seconds, with silence behind.

        Raises EngineError.
        """


EngineT = TypeVar("EngineT")


@dataclass(frozen=True)
class EngineSpec(Generic[EngineT]):
    """An engine before it is made: the object that an entry point of the group `personaplex.engines` names.

    `make(**options)` makes it; an option `model` is what follows the colon in `NAME:MODEL`. `modules` are what it
    imports (its module must not import them before `make`), `install` the line that brings them, `probe` raises
    PersonaPlexError if something else is missing; `ready` says whether its usual model is on this machine, so that
    nothing is downloaded when nobody asked for it. `platforms` are values of `sys.platform`, empty for all. `remark` is
    what a person should know, such as that no language model is at work, or that it was not run with real weights.
    """

    name: str
    kind: Kind
    make: Callable[..., EngineT]
    summary: str
    install: str
    licence: str
    modules: tuple[str, ...] = ()
    probe: Callable[[], None] | None = None
    platforms: tuple[str, ...] = ()
    remark: str = ""
    ready: Callable[[], bool] | None = None

    def missing(self) -> str | None:
        """What it lacks on this machine, in a clause; None when it can be made."""
        if self.platforms and sys.platform not in self.platforms:
            return f"it runs on {' and '.join(self.platforms)} only, this is {sys.platform}"
        absent = [name for name in self.modules if not _is_there(name)]
        if absent:
            return f"{', '.join(absent)} is not installed"
        try:
            if self.probe is not None:
                self.probe()
        except Exception as error:  # somebody else's probe may raise anything
            return str(as_error(error, self.kind))
        return None

    def open(self, **options: Any) -> EngineT:
        """Make it. Raises EngineError when something is missing, UsageError for an option that it does not have."""
        try:
            inspect.signature(self.make).bind(**options)
        except TypeError as error:
            known = ", ".join(inspect.signature(self.make).parameters) or "none"
            raise UsageError(f"the {self.kind} {self.name}: {error}; its options are: {known}") from error
        self.check()
        return self.make(**options)

    def check(self) -> None:
        """Raise EngineError, with what installs it, when something is missing."""
        if lack := self.missing():
            raise EngineError(f"the {self.kind} {self.name} cannot be used: {lack}; to install it: {self.install}")


def as_error(error: Exception, who: str) -> PersonaPlexError:
    """What is told of a mistake in an engine, which is somebody else's program: `error`, or a line about it."""
    if isinstance(error, PersonaPlexError):
        return error
    return EngineError(f"the {who} failed: {type(error).__name__}: {error}")


def first_line(error: BaseException) -> str:
    """What somebody else's program says went wrong, as far as it fits into a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent that is missing, or was replaced by something that is no module
        return False
