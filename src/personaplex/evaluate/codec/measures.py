"""How far what came out is from what went in: each measure of two waveforms [S] at 24 kHz, equally long and aligned.

STOI and ESTOI are pystoi's, PESQ is the package of that name's. The rest is arithmetic of a few lines.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import soxr

from personaplex.errors import BackendError
from personaplex.evaluate.row import Better
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

MEL_WINDOW, MEL_BANDS = 1024, 80
PESQ_RATE = 16_000
_AT_ONCE = 60 * SAMPLE_RATE
"""Samples of which spectra are made at once: those of an hour would take gigabytes."""

MOST_DELAY = FRAME_SAMPLES
"""Samples that a codec may lag or lead by: one frame."""

LEAST_LIKENESS = 0.5
"""Correlation of two waveforms from which on their delay can be told."""


class Measure(NamedTuple):
    """One measure: `of(reference, decoded)` is NaN where it is not defined; it may need a `package`."""

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]
    unit: str = ""
    at_most: bool = False
    package: str = ""
    install: str = ""

    @property
    def missing(self) -> str | None:
        """What to install before it can be measured; None when it can be."""
        if not self.package:
            return None
        try:
            importlib.import_module(self.package)
        except ImportError:
            return self.install
        return None

    @property
    def better(self) -> Better:
        """Which way it is."""
        return "lower" if self.at_most else "higher"

    def advantage(self, ours: float, theirs: float) -> float:
        """How much better `ours` is than `theirs`: above 0 if it is."""
        return theirs - ours if self.at_most else ours - theirs


def snr_db(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Signal-to-noise ratio in dB. A neural codec is not made for waveform match: a few dB are normal."""
    signal = np.square(reference, dtype=np.float64).sum()
    noise = np.square(reference.astype(np.float64) - decoded).sum()
    if signal == 0 or noise == 0:
        return float("-inf") if signal == 0 else float("inf")
    return float(10 * np.log10(signal / noise))


def si_sdr_db(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019): louder or softer changes nothing.

    Both without their mean. NaN where the reference or the decoded waveform does not move.
    """
    s, e = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (reference, decoded))
    if not (energy := float(s @ s)) or not float(e @ e):
        return math.nan
    target = (float(e @ s) / energy) * s
    return snr_db(target, e)


def mel_distance_db(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Mean difference of the log mel spectra, without sign, in dB: 0 is the same sound, and what waveforms hide shows.

    80 bands from 0 to 12 kHz on the mel scale (triangles of sum 1), of the magnitudes under a Hann window of 1,024
    samples every 256; 20 log10 of a magnitude plus 1e-4, some 60 dB below speech; the mean over bands and windows.
    The nearness of phases counts for nothing. The bands are those of the training's loss, which has five more scales.
    """
    import mlx.core as mx

    from personaplex.train.losses import FLOOR, magnitudes, mel_bands

    bands = mel_bands(MEL_WINDOW, MEL_BANDS)
    total = 0.0
    for start in range(0, len(reference), _AT_ONCE):
        pieces = (x[start : start + _AT_ONCE] for x in (reference, decoded))
        a, b = (mx.log10(magnitudes(mx.array(x[None]), MEL_WINDOW) @ bands + FLOOR) for x in pieces)
        total += float(20 * mx.abs(a - b).mean()) * min(_AT_ONCE, len(reference) - start)
    return total / len(reference)


def stoi(reference: np.ndarray, decoded: np.ndarray, *, extended: bool = False) -> float:
    """Short-time objective intelligibility, 0 to 1; `extended` is ESTOI. NaN for less than 0.4 s that is not silent.

    Raises BackendError when pystoi is not installed.
    """
    try:
        from pystoi import stoi as measure
    except ImportError as error:
        raise BackendError("pystoi is not installed; `pip install pystoi` (or personaplex-mlx[evaluate])") from error
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # its way to say that there is too little: it returns 1e-5
        try:
            # ESTOI adds noise of some 1e-16, another one each time; the same recording is to have the same number.
            return round(float(measure(reference, decoded, SAMPLE_RATE, extended=extended)), 6)
        except (RuntimeWarning, ValueError):
            return math.nan


def estoi(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Extended STOI: also hears what modulated noise spoils."""
    return stoi(reference, decoded, extended=True)


def pesq_wb(reference: np.ndarray, decoded: np.ndarray) -> float:
    """PESQ, wide band (ITU-T P.862.2), 1.0 to 4.6, at 16 kHz. NaN where it finds no utterance, or less than 0.25 s."""
    import pesq

    at_16k = (soxr.resample(x, SAMPLE_RATE, PESQ_RATE) for x in (reference, decoded))
    try:
        return float(pesq.pesq(PESQ_RATE, *at_16k, "wb"))
    except pesq.PesqError:
        return math.nan


MEASURES = (
    Measure("SNR (dB)", snr_db, "dB"),
    Measure("SI-SDR (dB)", si_sdr_db, "dB"),
    Measure("mel distance (dB)", mel_distance_db, "dB", at_most=True),
    Measure("STOI", stoi, package="pystoi", install="pip install pystoi"),
    Measure("ESTOI", estoi, package="pystoi", install="pip install pystoi"),
    Measure("PESQ-WB", pesq_wb, package="pesq", install="pip install pesq; it needs a C compiler"),
)
"""In the order of the table."""

TELLING = ("mel distance (dB)", "STOI")
"""What a damaged codec must be worse by. Not waveforms: a codec with more codes need not match those more."""


class Delay(NamedTuple):
    """How many `samples` a codec's output comes late, for all recordings; `likeness` is the correlation there.

    `known` is False where waveforms are too unlike to show a delay: then none is taken out.
    """

    samples: int
    likeness: float

    @property
    def known(self) -> bool:
        """Whether it was seen."""
        return self.likeness >= LEAST_LIKENESS


def delay_of(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Delay:
    """The delay of the second of each pair [S] after the first: where the mean of their correlations is greatest.

    Within a frame of 80 ms either way. Below a correlation of one half there is no telling (a codec that keeps no
    phases has its peaks anywhere), and 0 is what a codec of whole frames has by construction.
    """
    total, n_pairs = np.zeros(2 * MOST_DELAY + 1), 0
    for reference, decoded in pairs:
        n = 1 << (len(reference) + len(decoded)).bit_length()
        correlation = np.fft.irfft(np.fft.rfft(reference, n).conj() * np.fft.rfft(decoded, n), n)
        scale = math.sqrt(float(np.square(reference).sum()) * float(np.square(decoded).sum()))
        n_pairs += 1
        if scale:
            total += np.concatenate([correlation[-MOST_DELAY:], correlation[: MOST_DELAY + 1]]) / scale
    best = int(np.argmax(total))
    likeness = float(total[best]) / max(1, n_pairs)
    return Delay(best - MOST_DELAY if likeness >= LEAST_LIKENESS else 0, likeness)


def aligned(reference: np.ndarray, decoded: np.ndarray, delay: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as long as they overlap when `decoded` is moved `delay` samples to the front."""
    n = min(len(reference), len(decoded))
    reference, decoded = reference[:n], decoded[:n]
    if delay >= 0:
        return reference[: n - delay], decoded[delay:]
    return reference[-delay:], decoded[: n + delay]
