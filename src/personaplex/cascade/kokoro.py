"""Kokoro through ONNX Runtime: one small model with many natural voices, in six languages here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.cascade.engine import EngineSpec, Piece
from personaplex.cascade.model_files import find_model, model_folder
from personaplex.errors import EngineError, SynthesisError, UsageError

WHERE = (
    "kokoro-v1.0.onnx and voices-v1.0.bin are among the releases of github.com/thewh1teagle/kokoro-onnx; "
    "put both into one folder"
)
DEFAULT_VOICE = "af_heart"

_ACCENTS = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr-fr", "h": "hi", "i": "it", "p": "pt-br"}
"""What a voice's first letter says of its language, in espeak-ng's names.

Japanese (j) and Chinese (z) are left out: the model was trained on other phonemes of theirs than espeak-ng's.
"""

_PAUSE_SECONDS = 0.25
"""After a sentence: as much as Kokoro puts between two, and takes from the end of the last."""


class Kokoro:
    """The model file and, beside it, the file of its voices.

    Raises EngineError for files that are missing or not Kokoro's.
    """

    def __init__(self, model: str = "kokoro-v1.0") -> None:
        path = find_model(model, ".onnx", f"{WHERE}, such as {model_folder()}")
        voices = _voices_beside(path)
        try:
            from kokoro_onnx import Kokoro as Model

            logging.getLogger("phonemizer").setLevel(logging.ERROR)  # it warns of words that are read as two
            self._model: Any = Model(str(path), str(voices))
            names = [name for name in self._model.get_voices() if name[:1] in _ACCENTS]
        except Exception as error:  # the files are whatever somebody named; every library has errors of its own
            raise EngineError(f"{path} with {voices} cannot be used: {type(error).__name__}: {error}") from error
        if not names:
            raise EngineError(f"{voices} holds no voice of a language that can be spoken here")
        self.voices = tuple(sorted(names, key=lambda name: name != DEFAULT_VOICE))
        self.languages = tuple(dict.fromkeys(_ACCENTS[name[0]][:2] for name in self.voices))

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """Pieces of up to 510 phonemes as they are made; in another language with a voice of that, if none is named."""
        if voice is not None and voice not in self.voices:
            raise UsageError(f"unknown voice {voice!r}; there are {', '.join(self.voices)}")
        if language not in (None, *self.languages):
            raise UsageError(f"no voice here speaks {language!r}; there are {', '.join(self.languages)}")
        voice = voice or next(name for name in self.voices if language in (None, _ACCENTS[name[0]][:2]))
        accent = _ACCENTS[voice[0]]
        if language not in (None, accent[:2]):
            accent = next(accent for accent in _ACCENTS.values() if accent[:2] == language)
        rate = 0
        try:
            for pcm, rate in _blocking(self._model.create_stream(text, voice, lang=accent)):
                yield Piece(np.asarray(pcm, np.float32), rate)
        except Exception as error:  # ONNX Runtime's errors share no class with others
            raise SynthesisError(f"kokoro cannot say {text!r}: {type(error).__name__}: {error}") from error
        yield Piece(np.zeros(round(_PAUSE_SECONDS * rate), np.float32), rate)

    def close(self) -> None:
        """Free the model."""
        self._model.voices.close()
        del self._model


def _voices_beside(path: Path) -> Path:
    """The file of voices: the only one there is, or that of the model's version."""
    found = sorted(path.parent.glob("voices*.bin"))
    version = path.stem.removeprefix("kokoro-").partition(".int8")[0].partition(".fp16")[0]
    own = [voices for voices in found if voices.stem == f"voices-{version}"] or found
    if len(own) != 1:
        here = ", ".join(voices.name for voices in found) or "none"
        raise EngineError(f"beside {path} there should be voices-{version}.bin; there is {here}. {WHERE}")
    return own[0]


def _blocking(stream: AsyncIterator[Any]) -> Iterator[Any]:
    """The items of an asynchronous generator, in an event loop that lives as long."""
    end = object()

    async def following() -> Any:
        return await anext(stream, end)

    async def finish() -> None:
        await stream.aclose()  # type: ignore[attr-defined]

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        try:
            while (item := runner.run(following())) is not end:
                yield item
        finally:
            runner.run(finish())


ENGINE = EngineSpec(
    "kokoro",
    "synthesiser",
    Kokoro,
    "natural, many voices in one small model; English, Spanish, French, Hindi, Italian, Portuguese",
    "pip install 'personaplex-mlx[kokoro]'",
    "MIT, weights Apache-2.0; it loads phonemizer and espeak-ng, GPL-3.0-or-later, when it is chosen",
    modules=("kokoro_onnx",),
    remark="Kokoro reads text with phonemizer and espeak-ng, free software under the GPL, version 3 or later",
)
