"""Piper: a small natural voice per file, in some forty languages; GPL, loaded only when it is chosen."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from personaplex.cascade.engine import EngineSpec, Piece
from personaplex.cascade.model_files import find_model, model_folder
from personaplex.errors import EngineError, SynthesisError, UsageError

EXAMPLE = "en_US-lessac-medium"


class Piper:
    """One voice file, such as `en_US-lessac-medium.onnx` with its `.onnx.json` beside it; its speakers are voices.

    Raises UsageError without a model, EngineError for files that are missing or no voice.
    """

    def __init__(self, model: str | None = None) -> None:
        if model is None:
            raise UsageError(f"piper needs a voice: piper:{EXAMPLE}, or piper:FILE.onnx")
        get = f"python -m piper.download_voices --download-dir {shlex.quote(str(model_folder()))} {EXAMPLE}"
        path = find_model(model, ".onnx", f"to get a voice: {get}")
        about = Path(f"{path}.json")
        if not about.is_file():
            raise EngineError(f"the voice {path} needs {about} beside it; both come with: {get}")
        try:
            from piper import PiperVoice

            self._voice = PiperVoice.load(path, about)
            speakers = self._voice.config.speaker_id_map
            self._ids = dict(sorted(speakers.items(), key=lambda speaker: speaker[1] != self._default()))
            self.voices = tuple(self._ids) or (path.stem,)
            self.languages = (_language(json.loads(about.read_text("utf-8"))),)
        except Exception as error:  # the file is whatever somebody named; every library has errors of its own
            raise EngineError(f"{path} is not a voice of Piper that can be used: {_line(error)}") from error

    def _default(self) -> int:
        return int(self._voice.config.default_speaker_id)

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """A piece for each sentence, when it has been made. Raises as `Synthesiser.say` does."""
        from piper import SynthesisConfig

        if voice is not None and voice not in self.voices:
            raise UsageError(f"unknown voice {voice!r}; there are {', '.join(self.voices)}")
        if language not in (None, *self.languages):
            raise UsageError(f"the voice does not speak {language!r}; it speaks {self.languages[0]}")
        settings = SynthesisConfig(speaker_id=self._ids.get(voice or self.voices[0]))
        try:
            for chunk in self._voice.synthesize(text, settings):
                yield Piece(chunk.audio_float_array.reshape(-1), chunk.sample_rate)
        except Exception as error:  # ONNX Runtime's errors share no class with others
            raise SynthesisError(f"piper cannot say {text!r}: {_line(error)}") from error

    def close(self) -> None:
        """Free the model."""
        del self._voice


def _language(about: dict[str, Any]) -> str:
    """ISO 639-1, from the voice's own description, or from the name of the phonemes that it was made for."""
    family = str(about.get("language", {}).get("family") or about["espeak"]["voice"].partition("-")[0])
    return {"cmn": "zh"}.get(family, family)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


ENGINE = EngineSpec(
    "piper",
    "synthesiser",
    Piper,
    f"natural, fast on a processor, one file per voice: piper:{EXAMPLE}",
    "pip install 'personaplex-mlx[piper]'",
    "GPL-3.0-or-later (loaded when it is chosen); each voice has terms of its own",
    modules=("piper",),
    remark="Piper is free software under the GPL, version 3 or later; the voice has its own terms",
)
