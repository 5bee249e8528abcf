"""Sounds with a known pitch and known formants."""

from __future__ import annotations

import math

import numpy as np

RATE = 24_000


def vowel(hz: float, resonances: tuple[float, ...], seconds: float = 1.0) -> np.ndarray:
    """Pulses at a pitch, softer by 12 dB an octave (the glottis), through resonances, louder by 6 dB (the lips)."""
    sound = (np.arange(int(seconds * RATE)) % round(RATE / hz) == 0).astype(np.float64)
    for centre, width in ((0, 100), *((centre, 80) for centre in resonances)):
        radius = math.exp(-math.pi * width / RATE)
        a, b = -2 * radius * math.cos(2 * math.pi * centre / RATE), radius**2
        out = np.zeros(len(sound) + 2)
        for i, x in enumerate(sound):
            out[i + 2] = x - a * out[i + 1] - b * out[i]
        sound = out[2:]
    sound = np.diff(sound, prepend=0)
    return np.asarray(0.3 * sound / np.abs(sound).max(), np.float32)
