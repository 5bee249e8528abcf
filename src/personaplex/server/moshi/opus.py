"""Opus in Ogg (RFC 6716, RFC 7845), as the reference's clients send and expect it: 24 kHz mono samples in and out.

FFmpeg's libopus, through PyAV, which is everywhere where MLX is. (`sphn`, which the reference uses, has no wheels for
Linux on ARM or for Python 3.14, and since 0.2 cuts a frame into two packets.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.codec.context import CodecContext

from personaplex.errors import AudioError
from personaplex.server.moshi.ogg import FIRST, Packets, Page, Pages, write_page
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

_SERIAL = 42
_PRE_SKIP = 3840
_VENDOR = b"sphn-pyo3"
"""What the reference's stream says of itself, and its clients may have learned to expect."""

_BITS_PER_SECOND = 32_000

_DECODED_RATE = 48_000
_DECODED_DELAY = 16
"""Samples that the way from 48 to 24 kHz keeps back; as many zeros come first, so that no packet waits for the next."""

MOST_SECONDS = 5.0
"""Sound that one message may hold: packets of silence are so small that a message could hold an hour of it."""


class OpusWriter:
    """Frames [1920] in, one Ogg page each out, with one packet of 80 ms: the reference's stream."""

    def __init__(self) -> None:
        self._encoder = CodecContext.create("libopus", "w")
        self._encoder.sample_rate = SAMPLE_RATE
        self._encoder.layout = "mono"
        self._encoder.format = "flt"
        self._encoder.time_base = Fraction(1, SAMPLE_RATE)
        self._encoder.bit_rate = _BITS_PER_SECOND
        self._encoder.options = {"application": "voip", "frame_duration": "80"}
        self._encoder.open()
        self._sequence = 0

    def head(self) -> list[bytes]:
        """The two pages before the sound: what the stream is, and an empty comment."""
        about = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, _PRE_SKIP, SAMPLE_RATE, 0, 0)
        tags = b"OpusTags" + struct.pack("<I", len(_VENDOR)) + _VENDOR + struct.pack("<I", 0)
        return [self._page(about, FIRST, 0), self._page(tags, 0, 0)]

    def write(self, pcm: np.ndarray) -> bytes:
        """The page of one frame [1920], silence too."""
        frame = av.AudioFrame.from_ndarray(np.clip(pcm, -1, 1)[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = (self._sequence - 2) * FRAME_SAMPLES
        (packet,) = self._encoder.encode(frame)
        # RFC 7845 counts in 48 kHz; the reference does not, and its clients do not mind.
        return self._page(bytes(packet), 0, (self._sequence - 1) * FRAME_SAMPLES)

    def _page(self, packet: bytes, flags: int, granule: int) -> bytes:
        self._sequence += 1
        return write_page(packet, flags=flags, granule=granule, serial=_SERIAL, sequence=self._sequence - 1)


class OpusReader:
    """Bytes of an Ogg-Opus stream in, in pieces of any size; samples [S] at 24 kHz out, as soon as a packet is whole.

    Nothing is skipped at the beginning (the reference's pre-skip of 80 ms is no delay that its encoder has). A stream
    may begin anew. Raises AudioError for what is not Ogg, not Opus, damaged, or more than `MOST_SECONDS` at once.
    """

    def __init__(self) -> None:
        self._pages = Pages()
        self._packets = Packets()
        self._serial: int | None = None
        self._decoder: CodecContext | None = None
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        self._waiting = np.zeros(_DECODED_DELAY, np.float32)

    def push(self, data: bytes) -> np.ndarray:
        """The samples that `data` completes."""
        return np.concatenate([np.zeros(0, np.float32), *self.pieces(data)])

    def pieces(self, data: bytes) -> Iterator[np.ndarray]:
        """The same, packet by packet: a message may hold two thousand of them, which take a second to decode."""
        seconds = 0.0
        for page in self._pages.push(data):
            if page.flags & FIRST:
                self._packets, self._serial, self._decoder = Packets(), page.serial, None
            for packet in self._packets_of(page):
                seconds += packet_seconds(packet)
                if seconds > MOST_SECONDS:
                    raise AudioError(
                        f"a message holds more than {MOST_SECONDS:g} s of sound; send it as it is recorded"
                    )
                yield self._decode(packet)

    def _packets_of(self, page: Page) -> Iterator[bytes]:
        """Packets of sound; what comes before them is read here."""
        if page.serial != self._serial:
            raise AudioError("the sound does not begin with an OpusHead page, or belongs to another stream")
        for packet in self._packets.push(page):
            if self._decoder is None:
                self._decoder = _decoder(packet)
            elif packet and not packet.startswith(b"OpusTags"):
                yield packet

    def _decode(self, packet: bytes) -> np.ndarray:
        assert self._decoder is not None
        n_samples, pieces = 0, [self._waiting]
        try:
            for frame in self._decoder.decode(av.Packet(packet)):  # type: ignore[attr-defined]
                frame.pts = None
                n_samples += frame.samples * SAMPLE_RATE // _DECODED_RATE
                pieces += [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        except av.FFmpegError as error:
            raise AudioError(f"the sound holds a packet that is not Opus: {error.strerror}") from error
        sound = np.concatenate(pieces)
        self._waiting = sound[n_samples:]
        return sound[:n_samples]


def _decoder(head: bytes) -> CodecContext:
    """The decoder that an OpusHead packet asks for."""
    if len(head) < 19 or not head.startswith(b"OpusHead"):
        raise AudioError("the sound does not begin with an OpusHead packet; send Ogg-Opus, mono or stereo")
    version, channels, _, _, _, mapping = struct.unpack_from("<BBHIhB", head, 8)
    if version > 15 or channels not in (1, 2) or mapping != 0:
        raise AudioError(f"Opus with {channels} channels in mapping {mapping} is not known here; send mono or stereo")
    decoder = CodecContext.create("libopus", "r")
    decoder.layout = "mono"
    decoder.extradata = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, SAMPLE_RATE, 0, 0)
    return decoder


_SECONDS = [0.01, 0.02, 0.04, 0.06] * 3 + [0.01, 0.02] * 2 + [0.0025, 0.005, 0.01, 0.02] * 4
"""Of one frame, by the five bits of configuration that a packet begins with (RFC 6716, 3.1)."""


def packet_seconds(packet: bytes) -> float:
    """How long a packet's sound is, by its first two bytes; it is not decoded. Raises AudioError for over 120 ms."""
    count = packet[0] & 3
    n_frames = 1 if count == 0 else 2 if count < 3 else (packet[1] & 63 if len(packet) > 1 else 0)
    seconds = n_frames * _SECONDS[packet[0] >> 3]
    if not 0 < seconds <= 0.12:
        raise AudioError("the sound holds a packet that is not Opus: no packet is empty, or longer than 120 ms")
    return seconds
