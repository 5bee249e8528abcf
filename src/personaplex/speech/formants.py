"""Resonances of a vocal tract: the first formants of speech, by linear prediction.

Praat does it better and is GPL; a median over many windows needs no more than this.
"""

from __future__ import annotations

import numpy as np
import soxr

from personaplex.units import SAMPLE_RATE

N_FORMANTS = 3
_RATE = 11_000
_ORDER = 12
"""Poles: two a formant and a few for the slope, at 1 kHz a pair and a vocal tract of 17 cm."""
_WINDOW, _HOP = 330, 165
_LOWEST_HZ, _HIGHEST_HZ, _WIDEST_HZ = 150.0, 5000.0, 500.0
_VOICED = 0.5


def formants(pcm: np.ndarray) -> np.ndarray:
    """Speech [S] at 24 kHz -> median of the first three formants in Hz [3]; zeros where nothing is voiced.

    Windows of 30 ms, within 30 dB of the loudest, whose first two correlations are those of a voice; poles of a
    12th-order predictor (autocorrelation method, pre-emphasis 0.97) that are narrower than 500 Hz.
    """
    sound = soxr.resample(np.asarray(pcm, np.float64), SAMPLE_RATE, _RATE)
    if len(sound) < _WINDOW:
        return np.zeros(N_FORMANTS)
    windows = np.lib.stride_tricks.sliding_window_view(sound, _WINDOW)[::_HOP]
    power = np.mean(np.square(windows), axis=1)
    # A vowel changes slowly from sample to sample; a hiss does not, and silence is nothing.
    slow = np.sum(windows[:, 1:] * windows[:, :-1], axis=1) / (_WINDOW * power + 1e-20)
    windows = windows[(power >= max(1e-3 * float(power.max()), 1e-10)) & (slow > _VOICED)]
    if not len(windows):
        return np.zeros(N_FORMANTS)
    emphasised = (windows - 0.97 * np.pad(windows, ((0, 0), (1, 0)))[:, :-1]) * np.hamming(_WINDOW)
    roots = np.linalg.eigvals(_companions(_predictors(emphasised)))
    hz = np.angle(roots) * _RATE / (2 * np.pi)
    widths = -np.log(np.abs(roots) + 1e-12) * _RATE / np.pi
    usable = (hz > _LOWEST_HZ) & (hz < _HIGHEST_HZ) & (widths < _WIDEST_HZ)
    found = np.sort(np.where(usable, hz, np.inf), axis=1)[:, :N_FORMANTS]
    whole = found[np.isfinite(found).all(axis=1)]
    return np.median(whole, axis=0) if len(whole) else np.zeros(N_FORMANTS)


def _predictors(windows: np.ndarray) -> np.ndarray:
    """Windows [n, W] -> coefficients [n, order] of the predictor of each sample from those before it."""
    spectra = np.abs(np.fft.rfft(windows, 2 * _WINDOW)) ** 2
    r = np.fft.irfft(spectra)[:, : _ORDER + 1]
    r[:, 0] = r[:, 0] * 1.0001 + 1e-12  # white noise 40 dB below: silence has a predictor too
    lags = np.abs(np.subtract.outer(np.arange(_ORDER), np.arange(_ORDER)))
    return np.asarray(np.linalg.solve(r[:, lags], r[:, 1:, None])[..., 0])


def _companions(predictors: np.ndarray) -> np.ndarray:
    """Matrices [n, order, order] whose eigenvalues are the predictors' poles."""
    matrices = np.zeros((len(predictors), _ORDER, _ORDER))
    matrices[:, 0] = predictors
    matrices[:, np.arange(1, _ORDER), np.arange(_ORDER - 1)] = 1
    return matrices
