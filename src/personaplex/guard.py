"""Signs that what the agent puts out is no speech any more. Numbers in, a kind or nothing out; no model in here."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

import numpy as np

from personaplex.turns import QUIET_RMS

Kind = Literal["repetition", "collapse", "noise", "not finite"]

TEXT_REPEATS, LONGEST_LOOP = 6, 4
"""A phrase of up to four tokens, said six times in a row, is a loop."""

WORD_FRAMES = 188
"""Words are compared for 15 s: whoever hums approval once a minute is not in a loop."""

SAME_FRAMES = 25
"""Two seconds of the very same codes, aloud: a tone, not a voice."""

COLLAPSED_NATS, COLLAPSED_FRAMES = 0.05, 25
"""Two seconds in which the next code was never in doubt, aloud."""

NOISE_FLATNESS, NOISE_FRAMES = 0.6, 12
"""A second whose spectrum is this flat (white noise: 0.96; two recordings of voices: at most 0.06 and 0.09)."""


class Guard:
    """Watches one agent frame by frame. A sign is told when it appears, and again only after it was gone."""

    def __init__(self, padding: tuple[int, ...]) -> None:
        self._padding = padding
        self._words: deque[tuple[int, int]] = deque(maxlen=TEXT_REPEATS * LONGEST_LOOP)
        self._at = 0
        self._spectra: deque[np.ndarray] = deque(maxlen=NOISE_FRAMES)
        self._codes = b""
        self._same = self._sure = 0
        self._told: Kind | None = None

    def watch(self, pcm: np.ndarray, text: int, codes: np.ndarray, entropy: float) -> Kind | None:
        """The sign that this frame completes: pcm [1920], text token, codes [8], mean entropy of the codes in nats."""
        # Numbers that are none rarely reach the sound: codes drawn from them are codes.
        if not (np.isfinite(entropy) and np.isfinite(pcm).all()):
            return "not finite"
        found = self._sign(pcm, text, codes, entropy)
        fresh, self._told = found != self._told, found
        return found if fresh else None

    def _sign(self, pcm: np.ndarray, text: int, codes: np.ndarray, entropy: float) -> Kind | None:
        loud = float(np.sqrt(np.mean(np.square(pcm, dtype=np.float64)))) >= QUIET_RMS
        same = codes.tobytes() == self._codes
        self._codes = codes.tobytes()
        self._same = self._same + 1 if loud and same else 0
        self._sure = self._sure + 1 if loud and entropy < COLLAPSED_NATS else 0
        self._at += 1
        if text not in self._padding:
            self._words.append((self._at, text))
        while self._words and self._words[0][0] <= self._at - WORD_FRAMES:
            self._words.popleft()
        if loud:
            self._spectra.append(spectrum(pcm))
        else:
            self._spectra.clear()
        if self._loops() or self._same >= SAME_FRAMES:
            return "repetition"
        if self._sure >= COLLAPSED_FRAMES:
            return "collapse"
        return "noise" if self._is_flat() else None

    def _loops(self) -> bool:
        words = [word for _, word in self._words]
        for length in range(1, LONGEST_LOOP + 1):
            last = words[-TEXT_REPEATS * length :]
            if len(last) == TEXT_REPEATS * length and last == last[:length] * TEXT_REPEATS:
                return True
        return False

    def _is_flat(self) -> bool:
        return len(self._spectra) == NOISE_FRAMES and flatness(self._spectra) > NOISE_FLATNESS


def spectrum(pcm: np.ndarray) -> np.ndarray:
    """The power spectrum [961] of a frame [1920]."""
    return np.square(np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)))))


def flatness(spectra: Sequence[np.ndarray] | np.ndarray) -> float:
    """How flat the mean of power spectra [F, 961] is: its geometric over its arithmetic mean, 1 for white noise."""
    # Below 50 Hz there is no voice, and above 7 kHz little of one: hiss there is a bad microphone's, not a loop's.
    power = np.mean(spectra, axis=0)[4:560] + 1e-20
    return float(np.exp(np.mean(np.log(power))) / np.mean(power))
