"""How far one waveform is from another, as an ear or a recogniser would have it; every distance has a gradient.

Spectra are products with a windowed DFT basis: on a GPU as fast as an FFT at these sizes, and differentiable on every
backend.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np

from personaplex.units import SAMPLE_RATE

SCALES = ((64, 8), (128, 16), (256, 32), (512, 48), (1024, 80), (2048, 128))
"""Window in samples and mel bands: short ones for clicks and onsets, long ones for pitch."""

FLOOR = 1e-4
"""Added to every mel band before the logarithm: some 60 dB below speech. Silence differs from silence by nothing."""

OVERLAP = 4


@cache
def _basis(window: int) -> mx.array:
    """Cosines and sines under a Hann window of unit energy: [window, 2 (window / 2 + 1)]."""
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    angles = 2 * np.pi * np.outer(n, np.arange(window // 2 + 1)) / window
    basis = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1) * (hann / np.sqrt(np.square(hann).sum()))[:, None]
    return mx.array(basis.astype(np.float32))


@cache
def mel_bands(window: int, n_bands: int) -> mx.array:
    """Triangles on the mel scale, each with sum 1, none narrower than a bin: [window / 2 + 1, bands]."""
    bins = np.arange(window // 2 + 1) * SAMPLE_RATE / window
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_bands + 2) / 2595) - 1)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    width = SAMPLE_RATE / window
    rise = (bins[:, None] - np.minimum(low, middle - width)) / np.maximum(middle - low, width)
    fall = (np.maximum(high, middle + width) - bins[:, None]) / np.maximum(high - middle, width)
    bands = np.maximum(0, np.minimum(rise, fall))
    return mx.array((bands / bands.sum(axis=0)).astype(np.float32))


@cache
def _third_octaves(window: int, n_bands: int = 15) -> mx.array:
    """Which bins belong to which third of an octave, from 150 Hz: [window / 2 + 1, bands]."""
    bins = np.arange(window // 2 + 1)[:, None] * SAMPLE_RATE / window
    centre = 150 * 2 ** (np.arange(n_bands) / 3)
    inside = (bins >= centre * 2 ** (-1 / 6)) & (bins < centre * 2 ** (1 / 6))
    return mx.array(inside.astype(np.float32))


def spectrum(pcm: mx.array, window: int) -> tuple[mx.array, mx.array]:
    """pcm [B, S] -> real and imaginary parts [B, T, window / 2 + 1], four windows over each sample."""
    hop = window // OVERLAP
    pcm = mx.pad(pcm, [(0, 0), (window // 2, window // 2 + -pcm.shape[1] % hop)])
    hops = pcm.reshape(pcm.shape[0], -1, hop)
    n = hops.shape[1] - OVERLAP + 1
    frames = mx.concatenate([hops[:, i : i + n] for i in range(OVERLAP)], axis=-1)
    real, imaginary = mx.split(frames @ _basis(window), 2, axis=-1)
    return real, imaginary


def magnitudes(pcm: mx.array, window: int) -> mx.array:
    """pcm [B, S] -> [B, T, window / 2 + 1]; the root's slope stays finite in silence."""
    real, imaginary = spectrum(pcm, window)
    return mx.sqrt(mx.square(real) + mx.square(imaginary) + 1e-10)


def mel_distance(pcm: mx.array, target: mx.array) -> mx.array:
    """Sum over the scales of the mean difference of log10 mel magnitudes, plus half that of the magnitudes."""
    total = mx.array(0.0)
    for window, n_bands in SCALES:
        bands = mel_bands(window, n_bands)
        ours, theirs = magnitudes(pcm, window) @ bands, magnitudes(target, window) @ bands
        total = total + mx.abs(mx.log10(ours + FLOOR) - mx.log10(theirs + FLOOR)).mean()
        total = total + 0.5 * mx.abs(ours - theirs).mean()
    return total


def envelope_distance(pcm: mx.array, target: mx.array, window: int = 640, segment: int = 60) -> mx.array:
    """1 - the mean correlation of third-octave envelopes over 0.4 s, which is what STOI compares.

    Segments 40 dB below the loudest of the crop count for nothing, bands that hardly move for little.
    """
    bands = _third_octaves(window)

    def envelopes(x: mx.array) -> mx.array:
        real, imaginary = spectrum(x, window)
        level = mx.sqrt((mx.square(real) + mx.square(imaginary)) @ bands + 1e-8)
        starts = range(0, level.shape[1] - segment + 1, segment // 2)
        return mx.stack([level[:, i : i + segment] for i in starts], axis=1)

    ours, theirs = envelopes(pcm), envelopes(target)
    energy = mx.square(theirs).sum(axis=(2, 3))
    heard = energy > 1e-4 * energy.max(axis=1, keepdims=True) + 1e-3
    ours, theirs = ours - ours.mean(axis=2, keepdims=True), theirs - theirs.mean(axis=2, keepdims=True)
    # The floor keeps the slope finite where nothing moves, and counts that as agreement.
    power = (mx.square(ours).sum(axis=2) + 3e-3) * (mx.square(theirs).sum(axis=2) + 3e-3)
    correlation = (((ours * theirs).sum(axis=2) + 3e-3) / mx.sqrt(power)).mean(axis=-1)
    return ((1 - correlation) * heard).sum() / mx.maximum(heard.sum(), 1)


PITCH_WINDOW, PITCH_DFT = 1536, 2048
"""64 ms, longer than what one latent decodes to: its periods must go on from latent to latent."""

LAGS = (60, 370)
"""Periods in samples, first and past the last: 400 down to 65 Hz."""

PITCH_TOP_HZ = 1500


@cache
def _pitch_bases() -> tuple[mx.array, mx.array]:
    """A Hann-windowed DFT up to PITCH_TOP_HZ [window, 2 bins], and spectrum -> autocorrelation [bins, 1 + lags]."""
    n, bins = np.arange(PITCH_WINDOW), np.arange(PITCH_TOP_HZ * PITCH_DFT // SAMPLE_RATE + 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / PITCH_WINDOW)
    angles = 2 * np.pi * np.outer(n, bins) / PITCH_DFT
    hann /= np.sqrt(np.square(hann).sum())
    forward = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1) * hann[:, None]
    lags = np.concatenate([[0], np.arange(*LAGS)])
    back = np.cos(2 * np.pi * np.outer(bins, lags) / PITCH_DFT)
    return mx.array(forward.astype(np.float32)), mx.array(back.astype(np.float32))


def pitch_distance(pcm: mx.array, target: mx.array, hop: int = 512) -> mx.array:
    """Mean difference of the autocorrelations of 64 ms windows at the lags of speaking pitch, 0 to 2.

    Of magnitudes up to 1.5 kHz, not of powers: then the harmonics count, not the loudest formant. Windows 40 dB
    below the loudest of the crop count for nothing.
    """
    forward, back = _pitch_bases()

    def periods(x: mx.array) -> tuple[mx.array, mx.array]:
        hops = x[:, : x.shape[1] - x.shape[1] % hop].reshape(x.shape[0], -1, hop)
        wide = PITCH_WINDOW // hop
        frames = mx.concatenate([hops[:, i : hops.shape[1] - wide + 1 + i] for i in range(wide)], axis=-1)
        real, imaginary = mx.split(frames @ forward, 2, axis=-1)
        power = mx.square(real) + mx.square(imaginary)
        correlation = mx.sqrt(power + 1e-8) @ back
        return correlation[..., 1:] / correlation[..., :1], power.sum(axis=-1)

    (ours, _), (theirs, energy) = periods(pcm), periods(target)
    heard = energy > 1e-4 * energy.max(axis=1, keepdims=True) + 1e-3
    return (mx.abs(ours - theirs).mean(axis=-1) * heard).sum() / mx.maximum(heard.sum(), 1)


def cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """logits [..., n], labels [...] -> mean negative log-likelihood."""
    right = mx.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (mx.logsumexp(logits, axis=-1) - right).mean()
