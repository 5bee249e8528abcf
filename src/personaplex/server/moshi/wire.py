"""Messages of `/api/chat`: binary, the first byte says what follows. Kyutai's rust/protocol.md, NVIDIA's encoder.ts."""

from __future__ import annotations

from enum import IntEnum

HANDSHAKE = b"\x00"
"""Sent once, when voice and role are read. Kyutai's has two numbers more; NVIDIA's server sends the bare byte."""


class Kind(IntEnum):
    """What a message is. A client may send any; audio and text are taken up, the rest is heard without consequence."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


def audio(page: bytes) -> bytes:
    """One Ogg page."""
    return b"\x01" + page


def text(piece: str) -> bytes:
    """A piece of what the agent says."""
    return b"\x02" + piece.encode()


def error(message: str) -> bytes:
    """Why a call cannot begin or go on, or why something that was asked for is not done."""
    return b"\x05" + message.encode()
