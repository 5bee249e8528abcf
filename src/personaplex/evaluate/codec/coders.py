"""There and back: Mimi with some of its codebooks, Mimi damaged on purpose, and Opus."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from typing import NamedTuple

import av
import mlx.core as mx
import numpy as np

from personaplex.audio import read_audio
from personaplex.errors import BackendError, UsageError
from personaplex.models.mimi import Mimi
from personaplex.units import FRAME_RATE, SAMPLE_RATE

OPUS_LOWEST = 6000
"""Bits per second from which on Opus is specified (RFC 6716, 2.1.1). Asked for a third of it, libopus sends silence."""

OPUS_PACKET_MS = 60
"""Sound per packet: the longest that one Opus frame holds, so the fewest bits for anything but sound."""


class MimiCoder:
    """Mimi with its first `n_codebooks`. Raises UsageError for a number that it does not have."""

    def __init__(self, mimi: Mimi, n_codebooks: int) -> None:
        if not 1 <= n_codebooks <= mimi.n_codebooks:
            raise UsageError(f"codebooks is {n_codebooks}; this codec has {mimi.n_codebooks}, so 1 to that many")
        self._mimi = mimi
        self.n_codebooks = n_codebooks

    @property
    def bits_per_second(self) -> float:
        """Of the codes, as they are: no entropy coder packs them."""
        return self.n_codebooks * math.log2(self._mimi.n_bins) * FRAME_RATE

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """pcm [S] at 24 kHz -> codes [n_codebooks, T] int32. What fewer codebooks say is what the first of more do."""
        return np.array(self._mimi.encode(mx.array(pcm)[None])[0, : self.n_codebooks])

    def decode(self, codes: np.ndarray, n_samples: int) -> np.ndarray:
        """Codes [K, T] -> pcm [n_samples]."""
        return np.array(self._mimi.decode(mx.array(codes)[None])[0])[:n_samples]


def halved(codes: np.ndarray) -> np.ndarray:
    """The first half of the codebooks [K / 2, T], of an odd number the smaller part."""
    return codes[: len(codes) // 2]


def shuffled(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same frames in another order [K, T]: every code is as frequent as before, nothing is where it was."""
    return codes[:, rng.permutation(codes.shape[1])]


class Packed(NamedTuple):
    """What a codec with packets made of a recording: its sound, and what it took for it."""

    pcm: np.ndarray
    bits_per_second: float


def opus(pcm: np.ndarray, bits_per_second: float) -> Packed:
    """pcm [S] at 24 kHz through libopus ("audio", mono, variable rate, 60 ms packets) and back, without its own delay.

    The rate is that of the packets, without the file around them. Raises BackendError when FFmpeg has no Opus.
    """
    file, n_bytes = io.BytesIO(), 0
    frame = av.AudioFrame.from_ndarray(np.clip(pcm, -1, 1)[None].astype(np.float32), format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    try:
        with av.open(file, "w", format="ogg") as container:
            options = {"application": "audio", "frame_duration": str(OPUS_PACKET_MS)}
            stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options=options)
            stream.bit_rate = round(bits_per_second)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                n_bytes += packet.size
                container.mux(packet)
    except (av.FFmpegError, ValueError) as error:  # the second for a codec that it was built without
        raise BackendError(f"this machine's FFmpeg cannot write Opus ({error}); leave it out: --no-opus") from error
    file.seek(0)
    # The container says how much of the beginning is the encoder's delay; whoever reads it drops that.
    decoded = read_audio(file)[: len(pcm)]
    decoded = np.pad(decoded, (0, len(pcm) - len(decoded)))
    return Packed(decoded, 8 * n_bytes * SAMPLE_RATE / len(pcm))
