"""espeak-ng through ctypes: one utterance at a time, with its word and phoneme events."""

from __future__ import annotations

import ctypes
import math
import os
from ctypes import POINTER, c_char, c_char_p, c_int, c_short, c_uint, c_void_p
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from personaplex.errors import SynthesisError
from personaplex.speech.library import ESPEAK_PACKAGES, begin_noise, load_espeak
from personaplex.speech.phones import label, sounds_like
from personaplex.speech.utterance import Raw, Segment

NATURAL_RATE = 175
"""Words per minute at rate 1."""

_SYNCHRONOUS = 2
_BUFFER_MS = 2000
_PHONEME_EVENTS, _DONT_EXIT = 0x1, 0x8000
_UTF8, _PHONEMES_IN_BRACKETS = 1, 0x100
_RATE, _PITCH, _RANGE = 1, 3, 4
_WORD, _PHONEME = 1, 7


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("message", c_uint),
        ("position", c_int),
        ("length", c_int),
        ("milliseconds", c_int),
        ("sample", c_int),
        ("user", c_void_p),
        ("name", c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))


class _Heard(NamedTuple):
    """One event as it came: its type, its place in the text, its sample, the phoneme's name."""

    type: int
    position: int
    sample: int
    name: str


class _Named(NamedTuple):
    """A phoneme's name, its first sample and the index of its word."""

    name: str
    sample: int
    word: int


class _Engine:
    """The library, what its callback gathers, and the voice it is set to."""

    def __init__(self) -> None:
        library, own_data = load_espeak()
        folder = os.environ.get("PERSONAPLEX_ESPEAK_DATA") or own_data
        library.espeak_Initialize.argtypes = (c_int, c_int, c_char_p, c_int)
        library.espeak_Synth.argtypes = (
            c_char_p, ctypes.c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p,
        )  # fmt: skip
        self.rate = library.espeak_Initialize(
            _SYNCHRONOUS, _BUFFER_MS, os.fsencode(folder) if folder else None, _PHONEME_EVENTS | _DONT_EXIT
        )
        if self.rate <= 0:
            raise SynthesisError(
                f"espeak-ng found no data in {folder or 'its own folder'}; install it (apt-get install "
                f"{ESPEAK_PACKAGES}), or name the folder that holds espeak-ng-data in PERSONAPLEX_ESPEAK_DATA"
            )
        self.library = library
        self.voice = ""
        self.blocks: list[bytes] = []
        self.events: list[_Heard] = []
        self.callback = _Callback(self._gather)
        library.espeak_SetSynthCallback(self.callback)

    def _gather(self, samples: Any, n_samples: int, events: Any) -> int:
        for event in events:
            if not event.type:
                break
            if event.type in (_WORD, _PHONEME):
                name = event.name.decode("utf-8", "replace") if event.type == _PHONEME else ""
                self.events.append(_Heard(event.type, event.position - 1, event.sample, name))
        if samples and n_samples:
            self.blocks.append(ctypes.string_at(samples, 2 * n_samples))
        return 0

    def set_voice(self, voice: str) -> None:
        if voice != self.voice and self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SynthesisError(
                f"espeak-ng has no voice {voice!r}; install its data (apt-get install {ESPEAK_PACKAGES})"
            )
        self.voice = voice


@cache
def _engine() -> _Engine:
    return _Engine()


def synthesise(voice: str, tokens: list[str], pitch: float, spread: float, stretch: float) -> Raw:
    """Say `tokens`, one word each: `pitch` and `spread` times the voice's own, `stretch` times as long."""
    engine = _engine()
    engine.set_voice(voice)
    settings = {
        _RATE: round(NATURAL_RATE / stretch),
        # espeak's scale: 50 is the voice's own pitch, 50 more is an octave.
        _PITCH: round(50 + 50 * math.log2(pitch)),
        _RANGE: round(50 * spread),
    }
    for name, value in settings.items():
        engine.library.espeak_SetParameter(name, min(max(value, 0), 450 if name == _RATE else 99), 0)
    engine.blocks, engine.events = [], []
    text = " ".join(tokens).encode("ascii")
    begin_noise(text)
    if engine.library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8 | _PHONEMES_IN_BRACKETS, None, None) != 0:
        raise SynthesisError(f"espeak-ng said nothing for {' '.join(tokens)!r}")
    pcm = np.frombuffer(b"".join(engine.blocks), np.int16).astype(np.float32) / 32768
    return Raw(pcm, engine.rate, _segments(engine.events, tokens, len(pcm), engine.rate))


def _segments(events: list[_Heard], tokens: list[str], n_samples: int, rate: int) -> list[Segment]:
    """Phonemes with the index of their word; a word without an event of its own takes its share of its neighbour's."""
    starts = np.cumsum([0] + [len(token) + 1 for token in tokens])
    named: list[_Named] = []
    word, seen = -1, set()
    for event in events:
        if event.type == _WORD:
            word = int(np.searchsorted(starts, event.position, "right")) - 1
            seen.add(word)
        else:
            named.append(_Named(event.name, event.sample, word))
    for missing in range(len(tokens)):
        if missing not in seen:
            _share(named, tokens, missing)
    ends = [row.sample for row in named[1:]] + [n_samples]
    return [
        Segment(name, sample / rate, end / rate, -1 if label(name, "espeak") == "sil" else owner)
        for (name, sample, owner), end in zip(named, ends, strict=True)
    ]


def _share(named: list[_Named], tokens: list[str], missing: int) -> None:
    """espeak says "of the" as one word: give the second its phonemes, from one that its letters can begin with."""
    rows = [i for i, row in enumerate(named) if row.word == missing - 1 and label(row.name, "espeak") != "sil"]
    if len(rows) < 2:
        return
    likely = [i for i in rows[1:] if sounds_like(label(named[i].name, "espeak"), tokens[missing])]
    before, after = len(tokens[missing - 1]), len(tokens[missing])
    guess = rows[min(max(round(len(rows) * before / (before + after)), 1), len(rows) - 1)]
    first = min(likely, key=lambda i: abs(i - guess)) if likely else guess
    for i in rows:
        if i >= first:
            named[i] = named[i]._replace(word=missing)
