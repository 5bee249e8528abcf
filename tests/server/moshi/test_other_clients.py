"""Clients as they are published, in what they send and rely on: NVIDIA's page, LiveKit's plugin, Full-Duplex-Bench v2.

Written after what is known of each (their source, or for the last only that it calls this protocol); no code of theirs
runs here. `test_kyutais_client.py` runs one that is.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from urllib.parse import quote, urlencode

import av
import numpy as np
import pytest
from av.codec.context import CodecContext

from personaplex.server.moshi.ogg import FIRST, Pages, checksum, write_page
from personaplex.server.service import Service
from tests.server.conftest import serving, settings
from tests.server.moshi.caller import calling

SOUND = (0.3 * np.sin(np.arange(1920 * 25) ** 1.2 / 20)).astype(np.float32)


@pytest.fixture
def server(scripted_service: Callable[..., Service]) -> Iterator[str]:
    with serving(
        scripted_service(slots=1, words=("one", "two", "three"), settings=settings(busy_seconds=5.0))
    ) as address:
        yield address


def opus_recorder(pcm: np.ndarray) -> Iterator[bytes]:
    """Pages as opus-recorder makes them with NVIDIA's options: 20 ms packets, two to a page, 24 kHz mono."""
    encoder = CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 24_000, "mono", "flt"
    encoder.time_base = Fraction(1, 24_000)
    encoder.options = {"application": "audio", "frame_duration": "20", "compression_level": "0"}
    encoder.open()
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 3840, 24_000, 0, 0)
    yield write_page(head, flags=FIRST, granule=0, serial=5, sequence=0)
    yield write_page(b"OpusTags" + bytes(8), flags=0, granule=0, serial=5, sequence=1)
    packets = []
    for i, piece in enumerate(pcm.reshape(-1, 480)):
        frame = av.AudioFrame.from_ndarray(piece[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = 24_000, 480 * i
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    for n in range(0, len(packets) - 1, 2):
        two = packets[n : n + 2]
        page = struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 1920 * (n + 2) // 2, 5, n // 2 + 2, 0, 2)
        page += bytes(len(packet) for packet in two) + b"".join(two)
        yield page[:22] + struct.pack("<I", checksum(page)) + page[26:]


def test_nvidias_page(server: str) -> None:
    """It throws at kinds it does not know, decodes whole pages after the second only, and waits for the handshake."""
    query = urlencode(
        {
            "text_temperature": "0.7", "text_topk": "25", "audio_temperature": "0.8", "audio_topk": "250",
            "pad_mult": "0", "text_seed": "123456", "audio_seed": "654321", "repetition_penalty_context": "64",
            "repetition_penalty": "1.0", "text_prompt": "You enjoy having a good conversation.",
            "voice_prompt": "NATF0.pt",
        }
    )  # fmt: skip
    with calling(server, query, origin=server) as call:
        assert call.next() == b"\x00"
        for page in opus_recorder(SOUND):
            call.socket.send(b"\x01" + page)
        call.hear(24)
        pages = []
        for message in call.received:
            assert message[0] in range(7)
            if message[0] == 1:
                assert message[1:5] == b"OggS"
                (found,) = Pages().push(message[1:])
                pages.append(found)
        assert pages[0].flags & FIRST, "which makes it open its decoder"
        assert [page.sequence for page in pages] == list(range(len(pages)))
        assert call.text == "one two three "


def test_livekits_plugin(server: str) -> None:
    """It waits for the handshake, then sends at once what was recorded meanwhile; 500 ms without sound end a turn.

    A new role is a new call, as soon as the old one is closed: the one slot must be free by then.
    """
    sphn = pytest.importorskip("sphn", reason="sphn has no wheel for this machine or Python")
    for role in ("You are a helpful assistant.", "You are the opposite.", "Say 100% & more"):
        query = urlencode({"voice_prompt": "NATF0.pt", "text_prompt": role, "seed": "7"}, quote_via=quote)
        writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
        with calling(server, query) as call:
            assert call.next() == b"\x00"
            for frame in SOUND.reshape(-1, 1920):
                call.socket.send(b"\x01" + writer.append_pcm(frame))
            heard, last = 0, time.monotonic()
            while heard < 25 * 1920:
                message = call.next()
                if message[0] == 1:
                    heard += len(reader.append_bytes(message[1:]))
                    assert time.monotonic() - last < 0.5, "a turn would end here"
                    last = time.monotonic()
                elif message[0] == 2:
                    assert message[1:].decode() and message[1:] not in (b"\x00", b"\x03")


def test_a_benchmark_that_streams_a_recording_and_then_silence(server: str) -> None:
    """As Full-Duplex-Bench does: what comes back is as long as what was sent, frame for frame."""
    with calling(server, {"voice_prompt": "NATM1.pt", "text_prompt": "You are the examinee."}) as call:
        assert call.next() == b"\x00"
        call.converse(np.concatenate([SOUND, np.zeros(25 * 1920, np.float32)]))
        assert len(call.sound) == 50 * 1920
        assert np.abs(call.sound[: 20 * 1920]).max() > 0.2 > 0.01 > np.abs(call.sound[-1920 * 20 :]).max()
