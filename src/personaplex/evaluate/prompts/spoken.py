"""What a question sounds like: said by a local synthesiser, each text once, or read from a file."""

from __future__ import annotations

from contextlib import closing
from typing import Self

import numpy as np

from personaplex.audio import read_audio
from personaplex.cascade.aloud import Unsaid, read_aloud
from personaplex.cascade.engine import Synthesiser
from personaplex.cascade.registry import open_synthesiser
from personaplex.errors import AudioError, SynthesisError
from personaplex.evaluate.prompts.questions import Question
from personaplex.turns import QUIET_RMS


class Speakers:
    """Synthesisers, each opened when it is first needed. Close it, or use `with`."""

    def __init__(self) -> None:
        self._open: dict[str, Synthesiser] = {}
        self._said: dict[tuple[str, str | None, str], np.ndarray] = {}

    def sound(self, question: Question) -> np.ndarray:
        """The question as float32 [S] at 24 kHz. Raises AudioError, SynthesisError, EngineError or UsageError."""
        if question.audio is not None:
            pcm = read_audio(question.audio)
            if float(np.abs(pcm).max()) < QUIET_RMS:
                raise AudioError(f"{question.audio} is silent; there is no question in it")
            return pcm
        key = question.speaker, question.speaker_voice, question.say
        if key not in self._said:
            self._said[key] = self._say(*key)
        return self._said[key]

    def _say(self, speaker: str, voice: str | None, text: str) -> np.ndarray:
        if speaker not in self._open:
            self._open[speaker] = open_synthesiser(speaker)
        pieces = []
        with closing(read_aloud([text], self._open[speaker], speaker, voice)) as said:  # type: ignore[type-var]
            for piece in said:
                if isinstance(piece, Unsaid):
                    raise piece.error
                pieces.append(piece)
        if not pieces:
            raise SynthesisError(f"{speaker} makes no sound of {text!r}")
        return np.concatenate(pieces)

    def close(self) -> None:
        """Free the synthesisers."""
        for synthesiser in self._open.values():
            synthesiser.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
