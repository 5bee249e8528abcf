"""NVIDIA's Parakeet by `parakeet-mlx`: on Apple's GPUs, in 25 European languages.

It can stream, but then it changes how the model attends for everybody who shares it, and hears worse; so it hears
whole utterances here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from personaplex.cascade.engine import EngineSpec, TimedWord, Transcript
from personaplex.cascade.whole import RATE, WholeUtterance, check_language, is_downloaded, loading
from personaplex.cascade.worker import MLXWorker

if TYPE_CHECKING:
    from parakeet_mlx import AlignedResult, BaseParakeet

MODEL = "mlx-community/parakeet-tdt-0.6b-v3"

EUROPEAN = tuple("bg hr cs da nl en et fi fr de el hu it lv lt mt pl pt ro sk sl es sv ru uk".split())
"""What version 3 hears; the others hear English."""

_EUROPEAN_PIECES = 8192


class Parakeet:
    """One model, on a thread of its own."""

    rate = RATE

    def __init__(self, model: str = MODEL) -> None:
        self._thread = MLXWorker("parakeet")
        try:
            self._model = self._thread.call(self._load, model)
        except BaseException:
            self._thread.close()
            raise
        self.languages = EUROPEAN if len(self._model.vocabulary) >= _EUROPEAN_PIECES else ("en",)

    def _load(self, model: str) -> BaseParakeet:
        from parakeet_mlx import from_pretrained

        with loading("parakeet-mlx", model, "a Hugging Face repository, such as " + MODEL + ", or a folder"):
            return from_pretrained(model)

    def listen(self, language: str | None = None) -> WholeUtterance:
        """Begin an utterance. The model guesses its language. Raises UsageError for one that it does not know."""
        check_language("parakeet-mlx", language, self.languages)
        return WholeUtterance(lambda pcm: self._thread.call(self._hear, pcm))

    def _hear(self, pcm: np.ndarray) -> Transcript:
        import mlx.core as mx
        from parakeet_mlx.audio import get_logmel

        (found,) = self._model.generate(get_logmel(mx.array(pcm), self._model.preprocessor_config))
        return Transcript(found.text, _words(found), "en" if self.languages == ("en",) else None)

    def close(self) -> None:
        """End the thread; the model goes with this object."""
        self._thread.close()


def _words(found: AlignedResult) -> tuple[TimedWord, ...]:
    """Word pieces joined: a word begins with the piece that begins with a space."""
    words: list[TimedWord] = []
    for piece in found.tokens:
        if piece.text.startswith(" ") or not words:
            words.append(TimedWord(piece.text, piece.start, piece.end))
        else:
            words[-1] = TimedWord(words[-1].text + piece.text, words[-1].start, piece.end)
    return tuple(word._replace(text=word.text.strip()) for word in words if word.text.strip())


ENGINE = EngineSpec(
    "parakeet-mlx",
    "recogniser",
    Parakeet,
    "NVIDIA's Parakeet on Apple's GPUs, 25 European languages; hears whole utterances",
    "pip install 'personaplex-mlx[parakeet]'",
    "Apache-2.0; the weights CC-BY-4.0",
    modules=("parakeet_mlx",),
    remark="not run with real weights",
    ready=lambda: is_downloaded(MODEL, "model.safetensors"),
)
