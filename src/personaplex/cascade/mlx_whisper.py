"""Whisper by `mlx-whisper`: on Apple's GPUs, in some hundred languages."""

from __future__ import annotations

from functools import partial

import numpy as np

from personaplex.cascade.engine import EngineSpec, TimedWord, Transcript
from personaplex.cascade.whole import RATE, WholeUtterance, check_language, is_downloaded, loading
from personaplex.cascade.worker import MLXWorker

MODEL = "mlx-community/whisper-large-v3-turbo"


class MLXWhisper:
    """One model, on a thread of its own."""

    rate = RATE

    def __init__(self, model: str = MODEL) -> None:
        self._name = model
        self._thread = MLXWorker("mlx-whisper")
        try:
            self.languages: tuple[str, ...] = self._thread.call(self._load)
        except BaseException:
            self._thread.close()
            raise

    def _load(self) -> tuple[str, ...]:
        import mlx.core as mx
        from mlx_whisper.tokenizer import LANGUAGES
        from mlx_whisper.transcribe import ModelHolder

        with loading("mlx-whisper", self._name, "a Hugging Face repository, such as " + MODEL + ", or a folder"):
            # Where `transcribe` looks for it; the type is what it asks for.
            model = ModelHolder.get_model(self._name, mx.float16)
        return tuple(LANGUAGES)[: model.num_languages] if model.is_multilingual else ("en",)

    def listen(self, language: str | None = None) -> WholeUtterance:
        """Begin an utterance; without a language it is guessed. Raises UsageError for one that the model lacks."""
        check_language("mlx-whisper", language, self.languages)
        return WholeUtterance(partial(self._thread.call, self._hear, language))

    def _hear(self, language: str | None, pcm: np.ndarray) -> Transcript:
        import mlx_whisper

        found = mlx_whisper.transcribe(
            pcm,
            path_or_hf_repo=self._name,
            language=language,
            word_timestamps=True,
            condition_on_previous_text=False,
        )
        words = tuple(
            TimedWord(word["word"].strip(), float(word["start"]), float(word["end"]))
            for segment in found["segments"]
            for word in segment["words"]
        )
        return Transcript(found["text"].strip(), words, found["language"])

    def close(self) -> None:
        """Free the model."""
        self._thread.do(_forget)
        self._thread.close()


def _forget() -> None:
    from mlx_whisper.transcribe import ModelHolder

    ModelHolder.model = ModelHolder.model_path = None


ENGINE = EngineSpec(
    "mlx-whisper",
    "recogniser",
    MLXWhisper,
    "Whisper on Apple's GPUs, 99 languages; hears whole utterances",
    "pip install 'personaplex-mlx[mlx-whisper]'",
    "MIT; Whisper's weights MIT",
    modules=("mlx_whisper",),
    remark="not run with real weights",
    ready=lambda: is_downloaded(MODEL, "weights.safetensors") or is_downloaded(MODEL, "weights.npz"),
)
