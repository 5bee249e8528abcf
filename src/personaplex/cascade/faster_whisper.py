"""Whisper by `faster-whisper`: on the CPU or NVIDIA cards, in some hundred languages."""

from __future__ import annotations

from functools import partial

import numpy as np

from personaplex.cascade.engine import EngineSpec, TimedWord, Transcript
from personaplex.cascade.whole import RATE, WholeUtterance, check_language, is_downloaded, loading

MODEL = "base"
_KNOWN = "a size (tiny, base, small, medium, large-v3, turbo), a Hugging Face repository, or a folder"


class FasterWhisper:
    """One model; CTranslate2 lets any number of threads use it."""

    rate = RATE

    def __init__(self, model: str = MODEL) -> None:
        from faster_whisper import WhisperModel

        with loading("faster-whisper", model, _KNOWN):
            self._model = WhisperModel(model, device="auto", compute_type="auto")
        self.languages = tuple(self._model.supported_languages)

    def listen(self, language: str | None = None) -> WholeUtterance:
        """Begin an utterance; without a language it is guessed. Raises UsageError for one that the model lacks."""
        check_language("faster-whisper", language, self.languages)
        return WholeUtterance(partial(self._hear, language))

    def _hear(self, language: str | None, pcm: np.ndarray) -> Transcript:
        found, about = self._model.transcribe(
            pcm, language=language, word_timestamps=True, condition_on_previous_text=False
        )
        segments = list(found)
        words = tuple(
            TimedWord(word.word.strip(), float(word.start), float(word.end))
            for segment in segments
            for word in segment.words or ()
        )
        return Transcript("".join(segment.text for segment in segments).strip(), words, about.language)

    def close(self) -> None:
        """Free the model."""
        self._model.model.unload_model()


ENGINE = EngineSpec(
    "faster-whisper",
    "recogniser",
    FasterWhisper,
    "Whisper on the CPU or NVIDIA cards, 99 languages; hears whole utterances",
    "pip install 'personaplex-mlx[whisper]'",
    "MIT; Whisper's weights MIT",
    modules=("faster_whisper",),
    remark="tested with random weights",
    ready=lambda: is_downloaded(f"Systran/faster-whisper-{MODEL}", "model.bin"),
)
