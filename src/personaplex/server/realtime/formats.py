"""Sound as clients send and want it: pcm16, float32, and the telephone's G.711; inside it is float32 at 24 kHz.

G.711 is two tables of its standard (ITU-T G.711): Python 3.13 has no `audioop` any more, and PyAV's codecs want a frame
object for each piece.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import soxr

from personaplex.audio import pcm16
from personaplex.errors import AudioError, UsageError
from personaplex.units import SAMPLE_RATE

Kind = Literal["pcm16", "f32", "ulaw", "alaw"]

LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000
TELEPHONE_RATE = 8_000

_NAMES: dict[str, Kind] = {
    "pcm16": "pcm16",
    "pcm_s16le": "pcm16",
    "s16le": "pcm16",
    "pcm_f32le": "f32",
    "f32": "f32",
    "g711_ulaw": "ulaw",
    "g711_alaw": "alaw",
    "audio/pcm": "pcm16",
    "audio/pcm_f32le": "f32",
    "audio/pcmu": "ulaw",
    "audio/pcma": "alaw",
}
_GA: dict[Kind, str] = {"pcm16": "audio/pcm", "f32": "audio/pcm_f32le", "ulaw": "audio/pcmu", "alaw": "audio/pcma"}
_BETA: dict[Kind, str] = {"pcm16": "pcm16", "f32": "pcm_f32le", "ulaw": "g711_ulaw", "alaw": "g711_alaw"}
_BYTES: dict[Kind, int] = {"pcm16": 2, "f32": 4, "ulaw": 1, "alaw": 1}


class Format(NamedTuple):
    """How sound is written (mono, little endian), and its samples per second."""

    kind: Kind = "pcm16"
    rate: int = SAMPLE_RATE

    @property
    def ga(self) -> dict[str, Any]:
        """As the protocol's present form has it."""
        about: dict[str, Any] = {"type": _GA[self.kind]}
        return about if self.kind in ("ulaw", "alaw") else about | {"rate": self.rate}

    @property
    def beta(self) -> str:
        """As the beta had it, which knew no other rate."""
        return _BETA[self.kind]


PCM16 = Format()


def read_format(name: str, rate: int | None = None) -> Format:
    """A format by either name of it. Raises UsageError for one that is unknown, and for a rate that it cannot have."""
    kind = _NAMES.get(name)
    if kind is None:
        raise UsageError(f"unknown audio format {name[:40]!r}; there are {', '.join(sorted(_NAMES))}")
    telephone = kind in ("ulaw", "alaw")
    if rate is None:
        return Format(kind, TELEPHONE_RATE if telephone else SAMPLE_RATE)
    if telephone and rate != TELEPHONE_RATE:
        raise UsageError(f"{name} has {TELEPHONE_RATE} samples per second, not {rate}")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UsageError(f"a rate of {rate} samples per second; expected {LOWEST_RATE} to {HIGHEST_RATE}")
    return Format(kind, rate)


class Decoder:
    """Bytes in pieces of any size to float32 [S] at 24 kHz; what is left of a sample waits for the next piece."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._left = b""
        self._resampler = None if form.rate == SAMPLE_RATE else soxr.ResampleStream(form.rate, SAMPLE_RATE, 1)

    def push(self, data: bytes) -> np.ndarray:
        """The sound of `data`, as far as it is certain. Raises AudioError for samples that are no numbers."""
        data = self._left + data
        whole = len(data) - len(data) % _BYTES[self.form.kind]
        data, self._left = data[:whole], data[whole:]
        pcm = _read(data, self.form.kind)
        if self.form.kind == "f32" and not np.isfinite(pcm).all():
            raise AudioError("the sound holds samples that are not numbers (NaN or infinity)")
        return pcm if self._resampler is None else self._resampler.resample_chunk(pcm)


class Encoder:
    """Float32 [S] at 24 kHz to bytes."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self._resampler = None if form.rate == SAMPLE_RATE else soxr.ResampleStream(SAMPLE_RATE, form.rate, 1)

    def push(self, pcm: np.ndarray, *, last: bool = False) -> bytes:
        """The bytes of `pcm`, as far as they are certain; all that is left with the `last`."""
        if self._resampler is not None:
            pcm = self._resampler.resample_chunk(pcm, last=last)
        if self.form.kind == "f32":
            return pcm.astype("<f4").tobytes()
        levels = pcm16(pcm)
        if self.form.kind == "pcm16":
            return levels.astype("<i2").tobytes()
        return _compressing(self.form.kind)[levels.view(np.uint16)].tobytes()


def _read(data: bytes, kind: Kind) -> np.ndarray:
    if kind == "f32":
        return np.frombuffer(data, "<f4").astype(np.float32)
    levels = np.frombuffer(data, "<i2") if kind == "pcm16" else _expanding(kind)[np.frombuffer(data, np.uint8)]
    return levels.astype(np.float32) / 32768


@cache
def _expanding(kind: Kind) -> np.ndarray:
    """16-bit levels [256] of the codes of a G.711 law."""
    codes = np.arange(256)
    if kind == "ulaw":
        codes = ~codes & 0xFF
        segment, step = codes >> 4 & 7, codes & 15
        levels = ((step * 8 + 132) << segment) - 132
        return np.asarray(np.where(codes & 0x80, -levels, levels), np.int16)
    codes = codes ^ 0x55
    segment, step = codes >> 4 & 7, codes & 15
    levels = np.where(segment == 0, step * 16 + 8, (step * 16 + 264) << np.maximum(segment - 1, 0))
    return np.asarray(np.where(codes & 0x80, levels, -levels), np.int16)


@cache
def _compressing(kind: Kind) -> np.ndarray:
    """Codes [65536] of the 16-bit levels, by their bits: the segment by its upper bound, then 16 steps in it."""
    levels = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.int32)
    if kind == "ulaw":
        size = np.minimum(np.abs(levels), 32635) + 132
        segment = np.floor(np.log2(size)).astype(np.int32) - 7
        codes = segment << 4 | size >> (segment + 3) & 15
        return np.asarray(~(codes | np.where(levels < 0, 0x80, 0)) & 0xFF, np.uint8)
    size = np.where(levels < 0, -levels - 1, levels)
    segment = np.maximum(np.floor(np.log2(np.maximum(size, 1))).astype(np.int32) - 7, 0)
    codes = segment << 4 | size >> np.maximum(segment + 3, 4) & 15
    return np.asarray((codes | np.where(levels < 0, 0, 0x80)) ^ 0x55, np.uint8)
