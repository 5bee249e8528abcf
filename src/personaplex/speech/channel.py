"""What a room, a microphone and a line do to speech."""

from __future__ import annotations

import numpy as np

from personaplex.speech.sounds import gain, noise
from personaplex.units import SAMPLE_RATE

_CUTOFFS_HZ = (4000, 6000, 8000)


def degrade(rng: np.random.Generator, pcm: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Speech [S] at 24 kHz as it may arrive: float32 [S], finite, within [-1, 1], its timing kept.

    `strength` from 0 (untouched) to 1 scales how often each thing happens and how far it goes: room, EQ, band limit,
    gain from -18 to +6 dB with soft clipping, a bed of noise, coarse quantisation.
    """
    out = np.asarray(pcm, np.float32)
    if strength <= 0 or len(out) == 0:
        return out.copy()

    def happens(share: float) -> bool:
        return bool(rng.random() < share * strength)

    response = _equaliser(rng, len(out), strength) if happens(0.7) else None
    if happens(0.35):
        limits = _band_limits(rng, len(out))
        response = limits if response is None else response * limits
    # Every linear step is one multiplication of spectra.
    out = _filtered(out, response, _room(rng, strength) if happens(0.5) else None)
    out = out * np.float32(gain(rng.uniform(-18, 6) * strength))
    if happens(0.15):
        drive = rng.uniform(1.5, 4.0) / (np.abs(out).max() + 1e-6)
        out = np.tanh(drive * out) / drive
    if happens(0.7):
        out = out + _bed(rng, out, rng.uniform(5, 35) + 20 * (1 - strength))
    if happens(0.15):
        out = _coarse(rng, out)
    return np.clip(out, -1, 1).astype(np.float32)


def _frequencies(n_samples: int) -> np.ndarray:
    return np.fft.rfftfreq(_fft_size(n_samples), 1 / SAMPLE_RATE)


def _fft_size(n_samples: int) -> int:
    """A size numpy transforms quickly, with room for the longest room response."""
    needed = n_samples + SAMPLE_RATE * 7 // 10
    step = 1 << max(0, needed.bit_length() - 4)
    return -(-needed // step) * step


def _filtered(pcm: np.ndarray, response: np.ndarray | None, room: np.ndarray | None) -> np.ndarray:
    if response is None and room is None:
        return pcm
    size = _fft_size(len(pcm))
    spectrum = np.fft.rfft(pcm, size)
    if response is not None:
        spectrum *= response
    if room is not None:
        spectrum *= np.fft.rfft(room, size)
    return np.fft.irfft(spectrum, size)[: len(pcm)].astype(np.float32)


def _equaliser(rng: np.random.Generator, n_samples: int, strength: float) -> np.ndarray:
    """A tilt and a few bells, without phase: nothing moves in time."""
    octaves = np.log2(np.maximum(_frequencies(n_samples), 50) / 1000)
    decibels = rng.uniform(-4, 3) * strength * octaves
    for _ in range(rng.integers(1, 5)):
        bell = np.exp(-0.5 * ((octaves - rng.uniform(-3, 3)) / rng.uniform(0.2, 0.9)) ** 2)
        decibels = decibels + rng.uniform(-9, 7) * strength * bell
    return np.asarray(10 ** (np.clip(decibels, -30, 15) / 20))


def _band_limits(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A telephone's 300 to 3,400 Hz, or a low-pass at 4, 6 or 8 kHz."""
    hz = _frequencies(n_samples)
    if rng.random() < 0.35:
        return np.asarray(1 / (1 + (np.maximum(hz, 1) / 300.0) ** -8) / (1 + (hz / 3400) ** 16))
    return np.asarray(1 / (1 + (hz / rng.choice(_CUTOFFS_HZ)) ** 16))


def _room(rng: np.random.Generator, strength: float) -> np.ndarray:
    """The direct path at sample 0, a few early reflections, a decaying tail of noise: RT60 of 0.1 to 0.7 s."""
    rt60 = 0.1 + rng.uniform(0, 0.6) * strength
    n_samples = int(rt60 * SAMPLE_RATE)
    seconds = np.arange(n_samples) / SAMPLE_RATE
    tail = rng.standard_normal(n_samples) * 10 ** (-3 * seconds / rt60)
    tail[: int(0.004 * SAMPLE_RATE)] = 0
    # A wall swallows the treble first.
    tail = np.convolve(tail, np.exp(-np.arange(8) / rng.uniform(0.5, 3)))[:n_samples]
    direct_to_tail = gain(rng.uniform(-2, 15))
    room = tail / (np.sqrt(np.sum(np.square(tail))) + 1e-9) / direct_to_tail
    for _ in range(rng.integers(2, 7)):
        at = int(rng.uniform(0.002, min(0.04, rt60 * 0.9)) * SAMPLE_RATE)
        room[at] += rng.choice((-1, 1)) * rng.uniform(0.05, 0.4)
    room[0] = 1.0
    return np.asarray(room / np.sqrt(np.sum(np.square(room))))


def _bed(rng: np.random.Generator, pcm: np.ndarray, snr_db: float) -> np.ndarray:
    bed = noise(rng, len(pcm))
    loud = np.sqrt(np.mean(np.square(pcm)) + 1e-12)
    return np.asarray(bed * (loud / gain(snr_db) / (np.sqrt(np.mean(np.square(bed))) + 1e-9)))


def _coarse(rng: np.random.Generator, pcm: np.ndarray) -> np.ndarray:
    """Mu-law companding to 6 to 8 bits: the noise that follows the speech on a digital line."""
    steps = 2.0 ** rng.integers(5, 8)
    peak = np.abs(pcm).max() + 1e-6
    small = np.sign(pcm) * np.log1p(255 * np.abs(pcm) / peak) / np.log(256)
    small = np.round(small * steps) / steps
    return np.asarray(np.sign(small) * np.expm1(np.abs(small) * np.log(256)) / 255 * peak)
