"""Large voices on MLX: Qwen3-TTS and CosyVoice through mlx-audio, and PersonaPlex's own. Not run with real weights.

mlx-audio 0.6 has no CosyVoice. Its offshoot mlx-audio-plus has, under the same module's name, so that one environment
holds one of the two.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.audio import read_audio
from personaplex.cascade.engine import EngineSpec, Piece, Synthesiser
from personaplex.cascade.own_thread import OwnThread
from personaplex.errors import AudioError, EngineError, SynthesisError, UsageError
from personaplex.units import SAMPLE_RATE

LONGEST_VOICE_SECONDS = 30.0
PIECE_SECONDS = 0.5
"""How much is made at a time: what an answer waits for at least."""

_QWEN_LANGUAGES = {
    "en": "english", "zh": "chinese", "ja": "japanese", "ko": "korean", "de": "german", "fr": "french",
    "ru": "russian", "pt": "portuguese", "es": "spanish", "it": "italian",
}  # fmt: skip


class _MlxAudio:
    """A model of mlx-audio, made and asked in one thread of its own. Raises EngineError when it cannot be loaded."""

    def __init__(self, who: str, model: str) -> None:
        self._who = who
        self._thread: OwnThread[Piece] = OwnThread(who, _clear_streams)
        try:
            self._model = self._thread.run(_load, model)
        except Exception as error:  # a folder or a repository: the library's errors, the Hub's, the network's
            self._thread.close()
            raise EngineError(f"{who} cannot load {model}: {type(error).__name__}: {error}") from error

    def _generate(self, request: Mapping[str, Any]) -> Iterator[Piece]:
        try:
            yield from self._thread.stream(lambda: _pieces(self._model, request))
        except Exception as error:
            raise SynthesisError(
                f"{self._who} cannot say {request['text']!r}: {type(error).__name__}: {error}"
            ) from error

    def close(self) -> None:
        """Free the model."""
        del self._model
        self._thread.close()


def _clear_streams() -> None:
    """A thread that leaves MLX's streams behind aborts the process when that ends."""
    import mlx.core as mx

    mx.clear_streams()


def _load(model: str) -> Any:
    utils: Any = importlib.import_module("mlx_audio.tts.utils")
    with redirect_stdout(sys.stderr):  # it prints, and our standard output may be sound
        return utils.load_model(model)


def _pieces(model: Any, request: Mapping[str, Any]) -> Iterator[Piece]:
    import mlx.core as mx

    ready = {name: mx.array(value) if isinstance(value, np.ndarray) else value for name, value in request.items()}
    for result in model.generate(**ready):
        yield Piece(np.array(result.audio.astype(mx.float32)).reshape(-1), result.sample_rate)


class QwenVoices(_MlxAudio):
    """Qwen3-TTS: the speakers of a CustomVoice model, or with a Base model the voice of a recording."""

    def __init__(self, model: str = "mlx-community/Qwen3-TTS-12Hz-0.6B-CustomVoice-8bit") -> None:
        super().__init__("qwen3-tts", model)
        if self._model.config.tts_model_type == "voice_design":
            self.close()
            raise EngineError(f"{model} makes voices from descriptions; choose a CustomVoice or a Base model")
        if self._model.tokenizer is None or self._model.speech_tokenizer is None:
            self.close()
            raise EngineError(f"{model} is not whole: its text tokenizer or its speech tokenizer could not be loaded")
        self.voices = tuple(self._model.get_supported_speakers())
        known = self._model.get_supported_languages()
        self.languages = tuple(code for code, name in _QWEN_LANGUAGES.items() if name in known)

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """Half a second at a time. Raises as `Synthesiser.say` does."""
        if language not in (None, *self.languages):
            raise UsageError(f"the model does not speak {language!r}; it speaks {', '.join(self.languages)}")
        request: dict[str, Any] = {
            "text": text,
            "lang_code": _QWEN_LANGUAGES[language] if language else "auto",
            "split_pattern": "",
            "stream": True,
            "streaming_interval": PIECE_SECONDS,
        }
        if voice in self.voices or (voice is None and self.voices):
            request["voice"] = voice or self.voices[0]
        elif voice is not None:
            request |= _recorded(voice, self.voices)
        yield from self._generate(request)


class CosyVoice(_MlxAudio):
    """CosyVoice 3: speaks like a recording, in the language of the text."""

    voices: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en", "zh", "ja", "ko", "de", "es", "fr", "it", "ru")

    def __init__(self, model: str = "mlx-community/Fun-CosyVoice3-0.5B-2512-4bit") -> None:
        super().__init__("cosyvoice", model)

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """One piece: the library makes no less. Raises as `Synthesiser.say` does."""
        if voice is None:
            raise UsageError("cosyvoice has no voices of its own; name a recording of up to 30 s as the voice")
        if language not in (None, *self.languages):
            raise UsageError(f"the model does not speak {language!r}; it speaks {', '.join(self.languages)}")
        yield from self._generate({"text": text, "verbose": False, "stt_model": None} | _recorded(voice, ()))


def _recorded(voice: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The recording that `voice` names, and what is said in it where FILE.txt beside it holds that."""
    path = Path(voice).expanduser()
    if not path.is_file():
        raise UsageError(f"unknown voice {voice!r}: no such recording; there are {', '.join(known) or 'no others'}")
    words = path.with_suffix(".txt")
    try:
        spoken = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{words}, what is said in the voice beside it, cannot be read as text: {error}") from error
    pcm = read_audio(path)
    if len(pcm) > LONGEST_VOICE_SECONDS * SAMPLE_RATE:
        raise AudioError(f"voice {path} is {len(pcm) / SAMPLE_RATE:.1f} s long; at most 30 s is used")
    return {"ref_audio": pcm} | ({"ref_text": spoken} if spoken else {})


def _probe(model: str) -> Callable[[], None]:
    """Whether the package has that model; without importing it, which takes seconds."""

    def look() -> None:
        found = importlib.util.find_spec("mlx_audio")
        folders = list(found.submodule_search_locations or ()) if found else []
        if not any((Path(folder) / "tts" / "models" / model).is_dir() for folder in folders):
            raise EngineError(f"the mlx_audio that is installed has no {model}")

    return look


def _own_voices(model: str = "nvidia/personaplex-7b-v1") -> Synthesiser:
    from personaplex.cascade.own_voices import OwnVoices

    return OwnVoices(model)


_UNTRIED = "for Macs; not run with real weights"

QWEN3 = EngineSpec(
    "qwen3-tts",
    "synthesiser",
    QwenVoices,
    "large, natural, ten languages; qwen3-tts:REPO names another model",
    "pip install 'mlx-audio>=0.6,<0.7', in an environment of its own",
    "MIT, weights Apache-2.0",
    modules=("mlx_audio",),
    probe=_probe("qwen3_tts"),
    remark=_UNTRIED,
)
COSYVOICE = EngineSpec(
    "cosyvoice",
    "synthesiser",
    CosyVoice,
    "large, speaks like a recording (--voice FILE); cosyvoice:REPO names another model",
    "pip install 'mlx-audio-plus==0.1.8', in an environment of its own: mlx-audio itself has no CosyVoice",
    "MIT, weights Apache-2.0",
    modules=("mlx_audio",),
    probe=_probe("cosyvoice3"),
    remark=_UNTRIED,
)
PERSONAPLEX = EngineSpec(
    "personaplex",
    "synthesiser",
    _own_voices,
    "the duplex model's own voices, its text stream given what to say; personaplex:MODEL names another model",
    "nothing to install; the weights are downloaded once (docs/weights.md)",
    "the weights' own",
    remark="experimental; not run with real weights",
)
