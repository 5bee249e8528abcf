"""What an answer sounds like to somebody else: the words that a recogniser hears in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from personaplex.cascade.engine import Recogniser, TimedWord
from personaplex.cascade.registry import default_recogniser, find_engine, open_recogniser, parse_choice
from personaplex.cascade.transcription import Utterance, transcribe
from personaplex.errors import EngineError
from personaplex.units import SAMPLE_RATE

GRAMMAR = "grammar"
"""The ear of nano's own test: it knows every answer that nano can give, and not the question."""


class Ear(Protocol):
    """A recogniser of whole answers."""

    name: str

    def hear(self, pcm: np.ndarray) -> str:
        """The words in samples [S] at 24 kHz; an empty text for none. Raises EngineError."""

    def close(self) -> None:
        """Free the recogniser."""


class EngineEar:
    """Any recogniser of the cascade (NAME[:MODEL]), hearing the parts in which somebody speaks."""

    def __init__(self, choice: str, language: str | None = "en", recogniser: Recogniser | None = None) -> None:
        self.name = choice
        self._recogniser = recogniser or open_recogniser(choice)
        self._language = language if language in self._recogniser.languages else None

    def hear(self, pcm: np.ndarray) -> str:
        """The words of all utterances."""
        return " ".join(said.text for said in self._utterances(pcm))

    def hear_words(self, pcm: np.ndarray, begin: float = 0.0) -> list[TimedWord]:
        """The words in [S] at 24 kHz from `begin` seconds on, timed from the recording's beginning.

        Raises EngineError for a recogniser that fails, or does not time its words.
        """
        words: list[TimedWord] = []
        for said in self._utterances(pcm[round(begin * SAMPLE_RATE) :]):
            if not said.words:
                raise EngineError("this recogniser does not say when its words were spoken; choose another")
            words += [TimedWord(word.text, word.start + begin, word.end + begin) for word in said.words]
        return words

    def _utterances(self, pcm: np.ndarray) -> Iterator[Utterance]:
        return transcribe([pcm.astype(np.float32)], self._recogniser, self._language)

    def close(self) -> None:
        """Free the model."""
        self._recogniser.close()


class GrammarEar:
    """PocketSphinx with the grammar of all that nano can say. Raises BackendError when that is not installed."""

    name = GRAMMAR

    def __init__(self) -> None:
        from personaplex.dialogue import grammar
        from personaplex.evaluate.nano.recogniser import Recogniser, network

        self._recogniser = Recogniser(network(grammar()))

    def hear(self, pcm: np.ndarray) -> str:
        """The words of the one answer that it sounds like."""
        return " ".join(self._recogniser.hear(spoken_part(pcm)))

    def close(self) -> None:
        """Nothing to free."""


def spoken_part(pcm: np.ndarray) -> np.ndarray:
    """Without the silence around it, which the grammar does not expect."""
    from personaplex.turns import QUIET_RMS
    from personaplex.units import FRAME_SAMPLES

    frames = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
    loud = np.flatnonzero(np.sqrt(np.mean(np.square(frames), axis=1)) >= QUIET_RMS)
    return frames[max(0, loud[0] - 2) : loud[-1] + 3].reshape(-1) if len(loud) else np.zeros(0, np.float32)


def check_ear(choice: str | None) -> None:
    """Raise UsageError for the name of no recogniser: before a model is loaded."""
    if choice not in (None, GRAMMAR):
        find_engine("recogniser", parse_choice(str(choice)).name)


def open_ear(choice: str | None, model: str) -> Ear:
    """The recogniser `choice`; None is the best for `model`: for nano the grammar, for others what this machine has."""
    choice = choice or (GRAMMAR if model == "nano" else default_recogniser())
    return GrammarEar() if choice == GRAMMAR else EngineEar(choice)
