"""Qwen3-ASR by `mlx-audio`: on Apple's GPUs, in 30 languages, without the times of words."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from personaplex.cascade.engine import EngineSpec, Transcript
from personaplex.cascade.whole import RATE, WholeUtterance, check_language, loading
from personaplex.cascade.worker import MLXWorker

MODEL = "mlx-community/Qwen3-ASR-0.6B-8bit"

LANGUAGES = {
    "zh": "Chinese", "en": "English", "yue": "Cantonese", "ar": "Arabic", "de": "German", "fr": "French",
    "es": "Spanish", "pt": "Portuguese", "id": "Indonesian", "it": "Italian", "ko": "Korean", "ru": "Russian",
    "th": "Thai", "vi": "Vietnamese", "ja": "Japanese", "tr": "Turkish", "hi": "Hindi", "ms": "Malay", "nl": "Dutch",
    "sv": "Swedish", "da": "Danish", "fi": "Finnish", "pl": "Polish", "cs": "Czech", "fil": "Filipino",
    "fa": "Persian", "el": "Greek", "ro": "Romanian", "hu": "Hungarian", "mk": "Macedonian",
}  # fmt: skip
"""What it calls the languages that it is asked for."""

TOKENS_PER_SECOND = 20
"""Several times what anybody says: a model that repeats itself must come to an end."""

_CODES = {name: code for code, name in LANGUAGES.items()}


class QwenASR:
    """One model, on a thread of its own."""

    rate = RATE

    def __init__(self, model: str = MODEL) -> None:
        self._thread = MLXWorker("qwen3-asr")
        try:
            self._model = self._thread.call(self._load, model)
        except BaseException:
            self._thread.close()
            raise
        told = self._model.config.support_languages or LANGUAGES.values()
        self.languages = tuple(code for code, name in LANGUAGES.items() if name in told)

    def _load(self, model: str) -> Any:
        from mlx_audio.stt import load

        with loading("qwen3-asr", model, "a Hugging Face repository, such as " + MODEL + ", or a folder"):
            return load(model)

    def listen(self, language: str | None = None) -> WholeUtterance:
        """Begin an utterance; without a language it is guessed. Raises UsageError for one that the model lacks."""
        check_language("qwen3-asr", language, self.languages)
        return WholeUtterance(partial(self._thread.call, self._hear, language))

    def _hear(self, language: str | None, pcm: np.ndarray) -> Transcript:
        found = self._model.generate(
            pcm,
            max_tokens=TOKENS_PER_SECOND * (2 + len(pcm) // RATE),
            language=None if language is None else LANGUAGES[language],
        )
        return Transcript(found.text.strip(), language=_CODES.get(found.language[0]))

    def close(self) -> None:
        """End the thread; the model goes with this object."""
        self._thread.close()


ENGINE = EngineSpec(
    "qwen3-asr",
    "recogniser",
    QwenASR,
    "Qwen3-ASR on Apple's GPUs, 30 languages; hears whole utterances, does not time words",
    "pip install 'personaplex-mlx[mlx-audio]'",
    "MIT; the weights Apache-2.0",
    modules=("mlx_audio",),
    remark="not run with real weights",
)
