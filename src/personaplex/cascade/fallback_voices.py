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
    """One of the two. Neither can be stopped within a piece, so a piece has `most_words`, where that takes long."""

    def __init__(
        self, voices: Sequence[str], synthesise: Callable[[str, list[str]], Raw], most_words: int = 1000
    ) -> None:
        self._most_words = most_words
        self.voices = tuple(voices)
        self.languages = ("en",)
        self._synthesise = synthesise

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """Pieces with the times of their words: one for a short text, none for one without letters or digits."""
        if voice is not None and voice not in self.voices:
            raise UsageError(f"unknown voice {voice!r}; there are {', '.join(self.voices)}")
        if language not in (None, *self.languages):
            raise UsageError(f"no voice here speaks {language!r}; there is {', '.join(self.languages)}")
        begins = True
        for clause in clauses(ascii_words(text), self._most_words):
            with _library:
                raw = self._synthesise(voice or self.voices[0], clause)
            ends = clause[-1][-1] in _PAUSES
            yield _piece(raw, clause, keep_before=begins, keep_after=ends)
            begins = ends

    def close(self) -> None:
        """Nothing to free: the libraries stay loaded."""


_PAUSES = ",.!?;:"
_JOINTS = frozenset("and but or that which who because if when while than to for with in on at of from as".split())


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


def clauses(words: list[str], most: int) -> Iterator[list[str]]:
    """The words in runs of at most `most`, cut at a comma if there is one, else before a word that joins."""
    while len(words) > most:
        ends = range(most, most // 3, -1)
        at_pause = (n for n in ends if words[n - 1][-1] in _PAUSES)
        at_joint = (n for n in ends if words[n].lower() in _JOINTS)
        cut = next(at_pause, None) or next(at_joint, most)
        yield words[:cut]
        words = words[cut:]
    if words:
        yield words


def _piece(raw: Raw, tokens: list[str], *, keep_before: bool, keep_after: bool) -> Piece:
    """The speech with its words; the silence around it only where a pause is meant."""
    spoken = [segment for segment in raw.segments if segment.word >= 0]
    begin = 0.0 if keep_before or not spoken else spoken[0].start
    end = len(raw.pcm) / raw.rate if keep_after or not spoken else spoken[-1].end
    words = []
    for index, token in enumerate(tokens):
        own = [segment for segment in spoken if segment.word == index]
        if own:
            words.append(TimedWord(token, own[0].start - begin, own[-1].end - begin))
    return Piece(raw.pcm[round(begin * raw.rate) : round(end * raw.rate)], raw.rate, tuple(words))


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
    lambda: Fallback(_FLITE_VOICES, _flite, most_words=10),
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
