"""Sound as a file that is sent while it is made: WAV and plain samples by hand, the rest by FFmpeg (PyAV).

soundfile writes some of these too, but only where it can go back and fill in lengths, which a response cannot.
"""

from __future__ import annotations

import io
import itertools
import math
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias, cast

import av
import numpy as np
from av.filter import Graph

from personaplex.audio import pcm16, wav_header
from personaplex.errors import UsageError
from personaplex.units import SAMPLE_RATE

Form: TypeAlias = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


class _Coding(NamedTuple):
    """How FFmpeg calls container and codec, and what both are told."""

    container: str
    codec: str
    options: dict[str, str] = {}  # noqa: RUF012 - nobody changes it


MEDIA_TYPES: dict[Form, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": f"audio/L16; rate={SAMPLE_RATE}; channels=1",
}

_CODINGS = {
    "mp3": _Coding("mp3", "libmp3lame", {"write_xing": "0"}),  # its first frame would be filled in at the end
    "opus": _Coding("ogg", "libopus", {"page_duration": "100000"}),  # microseconds; by default a second waits
    "aac": _Coding("adts", "aac"),
    "flac": _Coding("flac", "flac"),
}

SLOWEST, FASTEST = 0.25, 4.0
"""OpenAI's limits."""


class SoundStream:
    """24 kHz mono sound in, the bytes of one file out, `speed` times as fast and as high as before.

    One thread at a time. Raises UsageError for a form or speed that there is not.
    """

    def __init__(self, form: Form = "wav", speed: float = 1.0) -> None:
        if form not in MEDIA_TYPES:
            raise UsageError(f"unknown response format {form!r}; there are {', '.join(MEDIA_TYPES)}")
        if not SLOWEST <= speed <= FASTEST:
            raise UsageError(f"speed is {speed}; it must be from {SLOWEST} to {FASTEST:g}")
        self._tempo = None if speed == 1 else _tempo(speed)
        self._head = wav_header(None) if form == "wav" else b""
        self._encoder = _Encoder(_CODINGS[form]) if form in _CODINGS else None
        self._n_in = 0

    def push(self, pcm: np.ndarray) -> bytes:
        """What of the file is known with [S] more samples in [-1, 1]; may be nothing yet."""
        samples = pcm16(pcm)
        if self._tempo is None:
            return self._encoded(samples)
        if len(samples):
            frame = _frame(samples, self._n_in)
            self._n_in += len(samples)
            self._tempo.push(frame)
        return self._encoded(self._stretched())

    def finish(self) -> bytes:
        """The rest of the file."""
        rest = b""
        if self._tempo is not None:
            if self._n_in:
                self._tempo.push(None)
            rest = self._encoded(self._stretched())
        return rest + (self._encoded(np.zeros(0, np.int16)) if self._encoder is None else self._encoder.finish())

    def _stretched(self) -> np.ndarray:
        assert self._tempo is not None
        pieces = []
        while True:
            try:
                pieces.append(cast(av.AudioFrame, self._tempo.pull()).to_ndarray()[0])
            except (av.BlockingIOError, av.EOFError):
                return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)

    def _encoded(self, samples: np.ndarray) -> bytes:
        if self._encoder is not None:
            return self._encoder.push(samples)
        head, self._head = self._head, b""
        return head + samples.astype("<i2").tobytes()


class _Sink(io.RawIOBase):
    """What a muxer writes, to be taken away; it cannot go back."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        before = len(self.written)
        self.written += bytes(cast(bytes, data))
        return len(self.written) - before

    def take(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        return data


class _Encoder:
    def __init__(self, coding: _Coding) -> None:
        self._sink = _Sink()
        self._container = av.open(self._sink, "w", format=coding.container, options=coding.options)
        stream = self._container.add_stream(coding.codec, rate=SAMPLE_RATE, layout="mono")
        self._stream = cast(av.AudioStream, stream)
        self._n_samples = 0

    def push(self, samples: np.ndarray) -> bytes:
        # The codec wants frames of its own size and type: the resampler inside `encode` cuts and converts.
        if len(samples):
            frame = _frame(samples, self._n_samples)
            self._n_samples += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        if self._n_samples:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()


def _frame(samples: np.ndarray, at: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, at, Fraction(1, SAMPLE_RATE)
    return frame


def _tempo(speed: float) -> Graph:
    """FFmpeg's `atempo`, which keeps the pitch; twice where one goes no slower than half."""
    graph = Graph()
    n = 2 if speed < 0.5 else 1
    source = graph.add_abuffer(format="s16", sample_rate=SAMPLE_RATE, layout="mono")
    filters = [graph.add("atempo", str(math.pow(speed, 1 / n))) for _ in range(n)]
    chain = [source, *filters, graph.add("aformat", "sample_fmts=s16"), graph.add("abuffersink")]
    for one, next_one in itertools.pairwise(chain):
        one.link_to(next_one)
    graph.configure()
    return graph
