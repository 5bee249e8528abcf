"""flite and espeak-ng as synthesisers: small, offline, natural (flite) or in many languages (espeak-ng)."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from personaplex.cascade.engine import EngineSpec, Piece, TimedWord
from personaplex.errors import SynthesisError, UsageError
from personaplex.speech import espeak, flite
from personaplex.speech.library import ESPEAK_PACKAGES, FLITE_PACKAGES
from personaplex.speech.utterance import Raw

_library = threading.Lock()
"""Both keep what they are set to in globals: one sentence at a time, whoever asks."""


class Fallback:
    """One of the two. A sentence is one piece: neither can be stopped within one, and neither needs to be."""

    def __init__(self, voices: Sequence[str], synthesise: Callable[[str, list[str]], Raw]) -> None:
        self.voices = tuple(voices)
        self.languages = ("en",)
        self._synthesise = synthesise

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """One piece for the text, with the times of its words; nothing for a text without letters or digits."""
        if voice is not None and voice not in self.voices:
            raise UsageError(f"unknown voice {voice!r}; there are {', '.join(self.voices)}")
        if language not in (None, *self.languages):
            raise UsageError(f"no voice here speaks {language!r}; there is {', '.join(self.languages)}")
        tokens = ascii_words(text)
        if tokens:
            with _library:
                raw = self._synthesise(voice or self.voices[0], tokens)
            yield Piece(raw.pcm, raw.rate, tuple(_words(raw, tokens)))

    def close(self) -> None:
        """Nothing to free: the libraries stay loaded."""


_PAUSES = ",.!?;:"


def ascii_words(text: str) -> list[str]:
    """The words of a text in ASCII, accents left out; what says nothing (no letter, no digit) joins its neighbour."""
    plain = unicodedata.normalize("NFKD", text.replace("’", "'").replace("–", ", ").replace("—", ", "))
    words: list[str] = []
    for word in plain.encode("ascii", "ignore").decode().replace("\0", " ").split():
        if any(c.isalnum() for c in word):
            words.append(word)
        elif words:
            words[-1] += word if len(word) == 1 and word in _PAUSES and words[-1][-1] not in _PAUSES else ""
    return words


def _words(raw: Raw, tokens: list[str]) -> Iterator[TimedWord]:
    for index, token in enumerate(tokens):
        own = [segment for segment in raw.segments if segment.word == index]
        if own:
            yield TimedWord(token, own[0].start, own[-1].end)


def _flite(voice: str, tokens: list[str]) -> Raw:
    return flite.synthesise(voice, tokens, flite.NATURAL_PITCH[voice][0], 1.0, 1.0)


def _espeak(voice: str, tokens: list[str]) -> Raw:
    return espeak.synthesise(voice, tokens, 1.0, 1.0, 1.0)


def _probe(synthesise: Callable[[str, list[str]], Raw], voice: str) -> Callable[[], None]:
    def say_something() -> None:
        with _library:
            if not len(synthesise(voice, ["a"]).pcm):
                raise SynthesisError("it says nothing")

    return say_something


_FLITE_VOICES = ("slt", "rms", "awb", "kal16", "kal")
_ESPEAK_VOICES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us+f3", "en-us+m3", "en-gb-x-rp+f4")

FLITE = EngineSpec(
    "flite",
    "synthesiser",
    lambda: Fallback(_FLITE_VOICES, _flite),
    "small, natural, offline, English; the default",
    f"apt-get install {FLITE_PACKAGES}",
    "BSD-style (CMU)",
    probe=_probe(_flite, "slt"),
)
ESPEAK = EngineSpec(
    "espeak",
    "synthesiser",
    lambda: Fallback(_ESPEAK_VOICES, _espeak),
    "tiny, offline, robotic; English here",
    f"apt-get install {ESPEAK_PACKAGES}, or pip install 'personaplex-mlx[espeak]'",
    "GPL-3.0-or-later (the library, loaded when it is chosen)",
    probe=_probe(_espeak, "en-us"),
)
