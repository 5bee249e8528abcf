"""Engines without a model, for tests of the cascade: they do as they are told, and remember what they were asked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from personaplex.by_turns import Call, Tool
from personaplex.cascade import registry
from personaplex.cascade.engine import EngineSpec, Message, Piece, TimedWord, Transcript
from personaplex.errors import EngineError, SynthesisError
from personaplex.vad import LevelDetector

RATE = 16_000
WORD_SECONDS = 0.2


class Recogniser:
    """Hears `said`, utterance by utterance, a word every 0.2 s; an exception instead of a text is raised."""

    rate = RATE
    languages = ("en",)

    def __init__(self) -> None:
        self.said: list[str | Exception] = []
        self.n_open = 0
        self.n_samples: list[int] = []

    def listen(self, language: str | None = None) -> Listening:
        self.n_open += 1
        return Listening(self)

    def close(self) -> None:
        pass


class Listening:
    def __init__(self, owner: Recogniser) -> None:
        self._owner = owner
        self._said: str | Exception | None = None
        self._n = 0
        self._open = True

    def push(self, pcm: np.ndarray) -> Transcript | None:
        if self._said is None:
            self._said = self._owner.said.pop(0) if self._owner.said else ""
        if isinstance(self._said, Exception):
            raise self._said
        assert pcm.dtype == np.float32 and pcm.ndim == 1
        self._n += len(pcm)
        words = self._said.split()[: int(self._n / RATE / WORD_SECONDS)]
        return Transcript(" ".join(words)) if words else None

    def finish(self) -> Transcript:
        self._owner.n_samples.append(self._n)
        assert self._said is None or isinstance(self._said, str)
        return Transcript(self._said or "")

    def close(self) -> None:
        self._owner.n_open -= self._open
        self._open = False


class Thinker:
    """Gives `tokens`; an exception among them is raised, a float waited for. `asked` is what it was asked.

    Calls among them are left out by `answer`; `consult` gives them once, since whoever has the result asks no more.
    """

    name = "script"

    def __init__(self) -> None:
        self.tokens: Sequence[str | float | Exception | Call] = ["Good day. ", "It is ", "noon."]
        self.asked: list[list[Message]] = []
        self.options: list[dict[str, Any]] = []
        self.n_open = 0
        self.n_given = 0
        self.absent: Exception | None = None

    async def check(self) -> None:
        if self.absent is not None:
            raise self.absent

    async def answer(self, messages: Sequence[Message], **options: Any) -> AsyncGenerator[str, None]:
        self.asked.append(list(messages))
        self.options.append(options)
        self.n_open += 1
        try:
            for token in self.tokens:
                if isinstance(token, Exception):
                    raise token
                if isinstance(token, float):
                    await asyncio.sleep(token)
                elif isinstance(token, str):
                    self.n_given += 1
                    yield token
        finally:
            self.n_open -= 1

    async def consult(
        self, messages: Sequence[Message], tools: Sequence[Tool], **options: Any
    ) -> AsyncGenerator[str | Call, None]:
        if messages[-1].role != "tool":
            for token in [token for token in self.tokens if isinstance(token, Call)]:
                self.asked.append(list(messages))
                self.options.append({**options, "tools": tuple(tools)})
                yield token
                return
        async for text in self.answer(messages, **options, tools=tuple(tools)):
            yield text

    async def close(self) -> None:
        pass


class Synthesiser:
    """A tone of 0.2 s for each word, one piece each; text with `unsayable` in it fails. `said` is what it was given."""

    voices = ("one", "two")
    languages = ("en",)

    def __init__(self) -> None:
        self.said: list[tuple[str, str | None]] = []
        self.n_open = 0
        self.seconds_per_word = 0.0
        self.lock = threading.Lock()

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        with self.lock:
            self.said.append((text, voice))
            self.n_open += 1
        try:
            for word in text.split():
                if word.startswith("unsayable"):
                    raise SynthesisError(f"cannot say {word!r}")
                time.sleep(self.seconds_per_word)
                n = round(WORD_SECONDS * RATE)
                pcm = 0.1 * np.sin(2 * np.pi * 300 * np.arange(n) / RATE).astype(np.float32)
                yield Piece(pcm, RATE, (TimedWord(word, 0.0, WORD_SECONDS),))
        finally:
            with self.lock:
                self.n_open -= 1

    def close(self) -> None:
        pass


class Engines:
    """One of each, known to the registry as `script`, `script-thinker` and `script-voice`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recogniser, self.thinker, self.synthesiser = Recogniser(), Thinker(), Synthesiser()
        specs: dict[str, EngineSpec[Any]] = {
            "script-ears": EngineSpec("script-ears", "recogniser", lambda: self.recogniser, "", "", ""),
            "script-mind": EngineSpec("script-mind", "thinker", lambda: self.thinker, "", "", ""),
            "script-voice": EngineSpec("script-voice", "synthesiser", lambda: self.synthesiser, "", "", ""),
        }
        for name, spec in specs.items():
            monkeypatch.setattr(f"{__name__}.{spec.kind.upper()}", spec, raising=False)
            monkeypatch.setitem(registry._OWN, name, f"{__name__}:{spec.kind.upper()}")


def speech(seconds: float) -> np.ndarray:
    """What `LevelDetector` takes for speech."""
    t = np.arange(round(seconds * 24_000)) / 24_000
    return (0.2 * np.sin(2 * np.pi * 200 * t)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 24_000), np.float32)


DOWN = EngineError("no chat server answers")

__all__ = ["DOWN", "Engines", "LevelDetector", "Listening", "silence", "speech"]
