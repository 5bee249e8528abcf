"""Ogg pages (RFC 3533), read strictly and within bounds, and written one packet to a page.

Ours and not a library's: what demultiplexes Ogg wants files or threads that wait, and `sphn` 0.2, which the reference's
successors use, takes pages with a wrong checksum and writes other packets than the reference does.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from personaplex.errors import AudioError

_HEADER = struct.Struct("<4sBBqIIIB")
_LONGEST_PACKET = 1 << 16
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

CONTINUED, FIRST, LAST = 1, 2, 4
"""Bits of a page's header type."""


class Page(NamedTuple):
    """One page: `packets` are pieces of packets, the last of which is cut off if `is_cut`."""

    flags: int
    granule: int
    serial: int
    sequence: int
    packets: list[bytes]
    is_cut: bool


def checksum(data: bytes) -> int:
    """Ogg's CRC-32: zlib's polynomial, with the bits of every byte and of the result the other way round, from 0."""
    mirrored = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def write_page(packet: bytes, *, flags: int, granule: int, serial: int, sequence: int) -> bytes:
    """A page that holds one packet (of less than 65,025 bytes) and ends with it."""
    lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    assert len(lacing) <= 255
    head = _HEADER.pack(b"OggS", 0, flags, granule, serial, sequence, 0, len(lacing))
    page = head + lacing + packet
    return page[:22] + struct.pack("<I", checksum(page)) + page[26:]


class Pages:
    """Bytes in pieces of any size in, whole pages out. Raises AudioError at the first byte that cannot be Ogg."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> Iterator[Page]:
        """The pages that `data` completes; what is left is kept, a page's length at most."""
        data, at = self._rest + data, 0
        while (length := _length(data, at)) is not None:
            yield _read(data[at : at + length])
            at += length
        self._rest = data[at:]


def _length(data: bytes, at: int) -> int | None:
    """Bytes of the page that begins at `at`, once it is whole. What has come of it is checked."""
    start = data[at : at + 5]
    if start[:4] != b"OggS"[: len(start)]:
        raise AudioError("the sound is not Ogg: a page was expected to begin, with the letters OggS")
    if len(start) > 4 and start[4] != 0:
        raise AudioError(f"the sound is Ogg of version {start[4]}; there is only version 0")
    if len(data) - at < _HEADER.size:
        return None
    n_segments = data[at + 26]
    lacing = data[at + _HEADER.size : at + _HEADER.size + n_segments]
    length = _HEADER.size + n_segments + sum(lacing)
    return length if len(lacing) == n_segments and len(data) - at >= length else None


def _read(page: bytes) -> Page:
    _, _, flags, granule, serial, sequence, crc, n_segments = _HEADER.unpack_from(page)
    if checksum(page[:22] + b"\0\0\0\0" + page[26:]) != crc:
        raise AudioError(f"page {sequence} of the sound is damaged: its checksum is wrong")
    lacing = page[_HEADER.size : _HEADER.size + n_segments]
    packets, at, piece_start = [], _HEADER.size + n_segments, _HEADER.size + n_segments
    for value in lacing:
        at += value
        if value < 255:
            packets.append(page[piece_start:at])
            piece_start = at
    is_cut = n_segments > 0 and lacing[-1] == 255
    if is_cut:
        packets.append(page[piece_start:at])
    return Page(flags, granule, serial, sequence, packets, is_cut)


class Packets:
    """Pages in, whole packets out: those that go over several pages are put together."""

    def __init__(self) -> None:
        self._cut = b""
        self._is_open = False

    def push(self, page: Page) -> Iterator[bytes]:
        """The packets that `page` completes. Raises AudioError for a packet longer than any of Opus's."""
        pieces = list(page.packets)
        if page.flags & CONTINUED and not self._is_open:
            pieces = pieces[1:]  # its beginning was never sent
        elif not page.flags & CONTINUED:
            self._cut, self._is_open = b"", False
        for i, piece in enumerate(pieces):
            packet = self._cut + piece
            if len(packet) > _LONGEST_PACKET:
                raise AudioError(f"a packet of the sound is over {_LONGEST_PACKET} bytes long; no Opus packet is")
            if page.is_cut and i == len(pieces) - 1:
                self._cut, self._is_open = packet, True
            else:
                self._cut, self._is_open = b"", False
                yield packet
