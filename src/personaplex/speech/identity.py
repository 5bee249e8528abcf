"""Who is speaking: a plain embedding of pitch and spectrum, and the nearest of known voices by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from personaplex.units import SAMPLE_RATE

N_BANDS = 32
_WINDOW, _HOP = 1024, 480
_LOWEST_HZ, _HIGHEST_HZ = 65.0, 380.0
_SHRINKAGE, _LEAST_VARIANCE = 0.3, 1e-4


@cache
def _bands() -> np.ndarray:
    """Triangles [513, N_BANDS] from 80 Hz to 7 kHz, evenly spaced in mel."""
    mel = np.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 7000 / 700), N_BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hz = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)[:, None]
    rise = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rise, fall))


def _frames(pcm: np.ndarray) -> np.ndarray:
    """Windows [n, 1024] within 30 dB of the loudest."""
    padded = np.pad(np.asarray(pcm, np.float64), (0, max(0, _WINDOW - len(pcm))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    power = np.mean(np.square(frames), axis=1)
    return np.asarray(frames[power >= max(float(power.max()) * 1e-3, 1e-10)])


def pitch(pcm: np.ndarray) -> float:
    """Median pitch in Hz of the voiced frames; 0 where nothing is voiced."""
    found = pitches(pcm)
    return float(np.median(found)) if len(found) else 0.0


def pitches(pcm: np.ndarray) -> np.ndarray:
    """Pitch in Hz of every voiced frame [n], by autocorrelation."""
    frames = _frames(pcm)
    if not len(frames):
        return np.zeros(0)
    window = np.hanning(_WINDOW)
    correlation = _autocorrelation(frames * window) / _autocorrelation(window[None])
    first, last = int(SAMPLE_RATE / _HIGHEST_HZ), int(SAMPLE_RATE / _LOWEST_HZ)
    lags = correlation[:, first:last] / (correlation[:, :1] + 1e-12)
    # The shortest lag that is nearly as good as the best: a multiple of the period is as good as the period.
    lag = first + np.argmax(lags >= 0.93 * lags.max(axis=1, keepdims=True), axis=1)
    while True:  # up the slope to the peak itself
        higher = (lag + 1 < last) & (_at(correlation, np.minimum(lag + 1, last)) > _at(correlation, lag))
        if not higher.any():
            break
        lag = lag + higher
    return np.asarray(SAMPLE_RATE / lag[lags.max(axis=1) > 0.6])


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    return np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * _WINDOW)) ** 2)[:, :_WINDOW] + 1e-12


def _at(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.asarray(rows[np.arange(len(rows)), columns])


def embedding(pcm: np.ndarray) -> np.ndarray:
    """Speech [S] at 24 kHz -> float64 [1 + 2 * N_BANDS]: log2 of the pitch, mean and deviation of the log-mel spectrum.

    Loudness does not matter.
    """
    frames = _frames(pcm)
    if not len(frames):
        return np.zeros(1 + 2 * N_BANDS)
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW))) ** 2
    mel = np.log10(power @ _bands() + 1e-7 * power.mean())
    mean = mel.mean(axis=0)
    return np.concatenate([[np.log2(max(pitch(pcm), _LOWEST_HZ))], mean - mean.mean(), mel.std(axis=0)])


class NearestVoice:
    """The known voice whose centroid is nearest, in the measure of how embeddings spread within a voice."""

    def __init__(self, examples: Mapping[str, Sequence[np.ndarray]]) -> None:
        """`examples`: two or more embeddings of every voice."""
        self.names = tuple(examples)
        centroids = [np.mean(rows, axis=0) for rows in examples.values()]
        within = np.concatenate([np.asarray(rows) - c for rows, c in zip(examples.values(), centroids, strict=True)])
        covariance = within.T @ within / len(within)
        # Fewer examples than features: what they say of each feature alone is trusted more than of two together.
        covariance += np.diag(_SHRINKAGE * np.diag(covariance) + _LEAST_VARIANCE)
        self._whiten = np.linalg.cholesky(np.linalg.inv(covariance))
        self.centroids = np.stack(centroids)

    def distances(self, of: np.ndarray) -> np.ndarray:
        """Distance (Mahalanobis) of an embedding to each voice, in the order of `names`."""
        return np.asarray(np.linalg.norm((self.centroids - of) @ self._whiten, axis=1))

    def __call__(self, pcm: np.ndarray) -> str:
        """Name of the voice nearest to what is heard."""
        return self.names[int(np.argmin(self.distances(embedding(pcm))))]
