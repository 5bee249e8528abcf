"""Ogg and Opus at the level of bytes: what we write is the reference's stream, what we read may be anything."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personaplex.errors import AudioError
from personaplex.server.moshi.ogg import CONTINUED, FIRST, Packets, Pages, checksum, write_page
from personaplex.server.moshi.opus import OpusReader, OpusWriter, packet_seconds

TONE = (0.3 * np.sin(np.arange(1920 * 6) ** 1.5 / 4000)).astype(np.float32)
"""It rises, so that no part of it is like another."""


def stream(pcm: np.ndarray = TONE) -> list[bytes]:
    writer = OpusWriter()
    return [*writer.head(), *(writer.write(frame) for frame in pcm.reshape(-1, 1920))]


def patched(page: bytes, at: int, value: int) -> bytes:
    """A page with one byte changed and a checksum that is right for it."""
    changed = bytearray(page)
    changed[at] = value
    changed[22:26] = bytes(4)
    changed[22:26] = struct.pack("<I", checksum(bytes(changed)))
    return bytes(changed)


def test_the_stream_is_the_references() -> None:
    """Byte for byte what sphn 0.1 writes around its packets (kyutai's src/opus.rs); one packet of 80 ms to a page."""
    pages = stream()
    assert pages[0][:22] == b"OggS\0\x02" + bytes(8) + struct.pack("<II", 42, 0)
    assert pages[0][26:] == b"\x01\x13OpusHead\x01\x01\x00\x0f\xc0\x5d\x00\x00\x00\x00\x00"
    assert pages[1][26:] == b"\x01\x19OpusTags\x09\x00\x00\x00sphn-pyo3\x00\x00\x00\x00"
    for i, page in enumerate(pages[2:]):
        (found,) = Pages().push(page)
        assert (found.flags, found.granule, found.serial, found.sequence) == (0, 1920 * (i + 1), 42, i + 2)
        assert len(found.packets) == 1 and not found.is_cut
        assert packet_seconds(found.packets[0]) == pytest.approx(0.08)


def test_the_checksum_is_libogg_s() -> None:
    """The head page of sphn 0.1.12, whose checksum libogg's algorithm gave."""
    head = bytes.fromhex("4f67675300020000000000000000" + "2a00000000000000" + "00000000" + "0113")
    head += b"OpusHead\x01\x01\x00\x0f\xc0\x5d\x00\x00\x00\x00\x00"
    slow = 0
    for byte in head:
        slow ^= byte << 24
        for _ in range(8):
            slow = (slow << 1 ^ 0x04C11DB7 if slow & 0x80000000 else slow << 1) & 0xFFFFFFFF
    assert checksum(head) == slow


def test_what_is_written_is_read_in_time_and_nearly_the_same() -> None:
    reader, heard = OpusReader(), []
    for page in stream():
        heard.append(reader.push(page))
    assert [len(pcm) for pcm in heard] == [0, 0, *[1920] * 6], "no packet waits for the next"
    sound = np.concatenate(heard)
    delays = [float(np.abs(TONE[4000:9000] - sound[4000 + d : 9000 + d]).mean()) for d in range(300)]
    assert min(delays) < 0.05 and 120 < int(np.argmin(delays)) < 200, "7 ms: the codec's own look ahead"


def test_sphn_reads_ours_and_we_read_sphns() -> None:
    """`sphn` is what Kyutai's clients and LiveKit's plugin have on their side."""
    sphn = pytest.importorskip("sphn", reason="sphn has no wheel for this machine or Python")
    theirs, writer = sphn.OpusStreamReader(24_000), sphn.OpusStreamWriter(24_000)
    ours = OpusReader()
    for page in stream():
        found, expected = theirs.append_bytes(page), ours.push(page)
        assert len(found) == len(expected)
    frames = [ours.push(writer.append_pcm(frame)) for frame in TONE.reshape(-1, 1920)]
    assert [len(pcm) for pcm in frames] == [1920] * 6, "a new stream begins in the same call"


@given(st.lists(st.integers(1, 400), max_size=30))
def test_any_cut_of_the_bytes_gives_the_same_sound(lengths: list[int]) -> None:
    data = b"".join(stream(TONE[: 1920 * 3]))
    whole, reader, heard, at = OpusReader().push(data), OpusReader(), [], 0
    for length in [*lengths, len(data)]:
        heard.append(reader.push(data[at : at + length]))
        at += length
    assert np.array_equal(np.concatenate(heard), whole)


@given(st.binary(max_size=400))
def test_bytes_that_are_no_ogg_are_told_or_waited_for(data: bytes) -> None:
    try:
        assert len(OpusReader().push(data)) == 0
    except AudioError as error:
        assert "\n" not in str(error)


@given(st.integers(0, 3), st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_any_byte_may_be_wrong(page: int, at: int, value: int, mended: bool) -> None:
    """With a checksum that tells, it is told; with one that fits, it is told or is some sound. Nothing else happens."""
    pages = stream(TONE[:3840])
    before = pages[page]
    at %= len(before)
    wrong = patched(before, at, value) if mended else before[:at] + bytes([value]) + before[at + 1 :]
    pages[page] = wrong
    reader = OpusReader()
    try:
        heard = sum(len(reader.push(data)) for data in pages)
    except AudioError:
        return
    lacing_grew = 26 <= at < 27 + before[26]  # the page waits for bytes that never come
    assert mended or wrong == before or lacing_grew
    assert heard <= 24_000


@given(st.lists(st.binary(max_size=700), min_size=1, max_size=6), st.integers(0, 3))
def test_packets_are_put_together_over_pages(packets: list[bytes], seed: int) -> None:
    """Packets cut into pages anywhere between segments come out whole."""
    lacing: list[tuple[int, bytes]] = []
    for packet in packets:
        pieces = [packet[i : i + 255] for i in range(0, len(packet), 255)]
        if len(packet) % 255 == 0:
            pieces.append(b"")
        lacing += [(len(piece), piece) for piece in pieces]
    pages, rng, is_open = [], np.random.default_rng(seed), False
    while lacing:
        n = int(rng.integers(1, 4))
        some, lacing = lacing[:n], lacing[n:]
        page = struct.pack("<4sBBqIIIB", b"OggS", 0, CONTINUED * is_open, 0, 1, 0, 0, len(some))
        page += bytes(length for length, _ in some) + b"".join(piece for _, piece in some)
        pages.append(patched(page, 4, 0))
        is_open = some[-1][0] == 255
    reader, assembler = Pages(), Packets()
    assert [packet for page in pages for found in reader.push(page) for packet in assembler.push(found)] == packets


def test_a_packet_that_never_ends_is_not_kept_for_ever() -> None:
    reader = OpusReader()
    reader.push(OpusWriter().head()[0])
    body = bytes([255] * 255) + bytes(255 * 255)
    page = patched(struct.pack("<4sBBqIIIB", b"OggS", 0, CONTINUED, 0, 42, 1, 0, 255) + body, 4, 0)
    with pytest.raises(AudioError, match="no Opus packet is"):
        for flags in (0, CONTINUED, CONTINUED):
            reader.push(patched(page, 5, flags))


def test_an_hour_of_silence_in_one_message_is_refused_before_it_is_decoded() -> None:
    reader = OpusReader()
    head = OpusWriter().head()
    silence = b"\x1b\x02"  # two frames of 60 ms, all of it in two bytes
    assert packet_seconds(silence) == pytest.approx(0.12)
    page = patched(struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 0, 42, 2, 0, 255) + bytes([2] * 255) + silence * 255, 4, 0)
    reader.push(head[0] + head[1])
    tracemalloc.start()
    with pytest.raises(AudioError, match="more than 5 s"):
        reader.push(page * 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"RIFF....WAVE", "not Ogg"),
        (b"OggS\x01", "version 1"),
        (write_page(b"OpusHead", flags=FIRST, granule=0, serial=1, sequence=0), "OpusHead"),
        (write_page(b"\x01vorbis" + bytes(40), flags=FIRST, granule=0, serial=1, sequence=0), "OpusHead"),
        (patched(stream()[0], 37, 6), "6 channels"),
        (patched(stream()[0], 46, 1), "in mapping 1"),
        (write_page(b"abc", flags=0, granule=0, serial=1, sequence=0), "does not begin with"),
        (stream()[0] + write_page(b"abc", flags=0, granule=0, serial=7, sequence=1), "another stream"),
        (stream()[0] + write_page(b"\xff\xff", flags=0, granule=0, serial=42, sequence=1), "not Opus"),
        (stream()[0] + write_page(b"\x03\x00", flags=0, granule=0, serial=42, sequence=1), "not Opus"),
        (stream()[0] + write_page(b"\xfb\x82\x01", flags=0, granule=0, serial=42, sequence=1), "not Opus"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_words(data: bytes, told: str) -> None:
    with pytest.raises(AudioError, match=told):
        OpusReader().push(data)


def test_empty_packets_and_other_pages_of_comments_are_no_sound() -> None:
    reader, pages = OpusReader(), stream(TONE[:1920])
    empty = struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 0, 42, 1, 0, 1) + b"\0"
    assert len(reader.push(pages[0] + patched(empty, 4, 0) + pages[1] + pages[2])) == 1920
