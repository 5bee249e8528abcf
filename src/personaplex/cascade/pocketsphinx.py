"""PocketSphinx as a recogniser: small, offline, English; its model comes in its wheel.

It hears the recorded question and flite's voices almost word for word and espeak-ng's hardly at all. Do not judge
recognition by it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from personaplex.cascade.engine import EngineSpec, TimedWord, Transcript
from personaplex.errors import UsageError

if TYPE_CHECKING:
    from pocketsphinx import Decoder

RATE = 16_000
DITHER = 10 ** (-80 / 20)
"""Standard deviation of the noise that keeps digital silence, which it cannot bear, from being digital."""

_FRAMES_PER_SECOND = 100

_TAIL = 1_600
"""Samples of silence after an utterance: of speech that ends with its recording nothing may be heard without."""

_QUICK = {"fwdflat": False, "maxhmmpf": 5000, "maxwpf": 10}
"""No second pass over an utterance: the last word is known when it was said, not a quarter of a second later."""


class PocketSphinx:
    """Decoders, each for one utterance at a time; one that is given back is used again."""

    rate = RATE
    languages = ("en",)

    def __init__(self) -> None:
        self._free: list[Decoder] = []
        self._lock = threading.Lock()

    def listen(self, language: str | None = None) -> PocketSphinxListening:
        """Begin an utterance. Raises UsageError for another language than English."""
        if language not in (None, "en"):
            raise UsageError(
                f"pocketsphinx's model hears English (en) only, not {language!r}; choose another recogniser"
            )
        from pocketsphinx import Decoder

        with self._lock:
            decoder = self._free.pop() if self._free else None
        return PocketSphinxListening(self, decoder or Decoder(loglevel="FATAL", **_QUICK))

    def give_back(self, decoder: Decoder) -> None:
        """Take a decoder that is between two utterances."""
        with self._lock:
            self._free.append(decoder)

    def close(self) -> None:
        """Forget the decoders."""
        with self._lock:
            self._free.clear()


class PocketSphinxListening:
    """One utterance; what it hears depends on that utterance alone."""

    def __init__(self, owner: PocketSphinx, decoder: Decoder) -> None:
        self._owner = owner
        self._decoder: Decoder | None = decoder
        self._noise = np.random.default_rng(0)
        self._text = ""
        decoder.reinit_feat()  # or what was heard before would colour this: the front end adapts
        decoder.start_utt()

    def push(self, pcm: np.ndarray) -> Transcript | None:
        """Hear float32 [S] at 16 kHz; the words so far, if they have changed."""
        if self._decoder is None:
            return None
        noisy = pcm + self._noise.normal(0, DITHER, len(pcm))
        samples = np.rint(32767 * np.clip(noisy, -1, 1)).astype("<i2")
        self._decoder.process_raw(samples.tobytes(), False, False)
        heard = self._decoder.hyp()
        text = heard.hypstr if heard is not None else ""
        if text == self._text:
            return None
        self._text = text
        return Transcript(text)

    def finish(self) -> Transcript:
        """All words, with their times."""
        if self._decoder is None:
            return Transcript("")
        self.push(np.zeros(_TAIL, np.float32))
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        words = tuple(
            TimedWord(
                part.word.split("(")[0],
                part.start_frame / _FRAMES_PER_SECOND,
                (part.end_frame + 1) / _FRAMES_PER_SECOND,
            )
            for part in self._decoder.seg() or ()
            if part.word[0] not in "<["
        )
        self._release()
        return Transcript(heard.hypstr if heard is not None else "", words, "en")

    def close(self) -> None:
        """Stop hearing."""
        if self._decoder is not None:
            self._decoder.end_utt()
            self._release()

    def _release(self) -> None:
        if self._decoder is not None:
            self._owner.give_back(self._decoder)
            self._decoder = None


ENGINE = EngineSpec(
    "pocketsphinx",
    "recogniser",
    PocketSphinx,
    "small, offline, English only; hears every word as it comes",
    "pip install pocketsphinx",
    "BSD-2-Clause",
    modules=("pocketsphinx",),
    remark="a fallback: expect mistakes",
)
