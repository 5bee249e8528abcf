"""Sound as a picture: loudness by time and pitch."""

from __future__ import annotations

import numpy as np

from personaplex.units import SAMPLE_RATE

COLUMN_SAMPLES, WINDOW = 480, 768
"""A column for every 20 ms, each of 32 ms."""
ROWS, LOWEST_HZ, HIGHEST_HZ = 64, 60.0, 8000.0
RANGE_DB = 65.0
"""What is so far below the loudest moment is left white."""
_FLOOR = 1e-5
"""Amplitude that counts as the loudest where all is softer: else rounding would be drawn as if it were sound."""


def row_of(hertz: float) -> float:
    """Where a frequency lies, 0 at the bottom to 1 at the top: the mel scale, on which equal steps sound alike."""
    low, high, here = (np.log1p(f / 700) for f in (LOWEST_HZ, HIGHEST_HZ, hertz))
    return float((here - low) / (high - low))


def spectrogram(pcm: np.ndarray) -> np.ndarray:
    """Samples [S] at 24 kHz -> [64, ceil(S / 480)], 0 for nothing to 1 for the loudest, high pitches first."""
    columns = max(1, -(-len(pcm) // COLUMN_SAMPLES))
    padded = np.pad(pcm.astype(np.float32), (WINDOW // 2, WINDOW + columns * COLUMN_SAMPLES - len(pcm)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::COLUMN_SAMPLES][:columns]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32))))
    pitches = 700 * np.expm1(np.linspace(np.log1p(HIGHEST_HZ / 700), np.log1p(LOWEST_HZ / 700), ROWS))
    bins = pitches * WINDOW / SAMPLE_RATE
    below = np.floor(bins).astype(int)
    part = (bins - below)[:, None]
    picture = power.T[below] * (1 - part) + power.T[below + 1] * part
    quietest = np.square(_FLOOR * WINDOW / 4)  # a sine of that amplitude, under this window
    decibels = 10 * np.log10(np.maximum(picture, 1e-20) / max(float(np.quantile(picture, 0.9995)), quietest))
    return np.asarray(np.clip(1 + decibels / RANGE_DB, 0, 1))
