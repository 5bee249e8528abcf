"""A client of `/api/chat` for tests: what the reference's clients do, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from personaplex.server.moshi.opus import OpusReader, OpusWriter

WAIT = 20.0


@dataclass
class Caller:
    """One call. `received` are all binary messages so far."""

    socket: ClientConnection
    writer: OpusWriter = field(default_factory=OpusWriter)
    reader: OpusReader = field(default_factory=OpusReader)
    received: list[bytes] = field(default_factory=list)
    sound: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def say(self, pcm: np.ndarray) -> None:
        """Send frames [S], a multiple of 1920, each in a message; the two head pages go before the first."""
        if self.writer._sequence == 0:
            for page in self.writer.head():
                self.socket.send(b"\x01" + page)
        for frame in pcm.reshape(-1, 1920):
            self.socket.send(b"\x01" + self.writer.write(frame))

    def next(self) -> bytes:
        """The next message. Raises ConnectionClosed."""
        message = self.socket.recv(WAIT)
        assert isinstance(message, bytes), "the server never sends text messages"
        self.received.append(message)
        if message[:1] == b"\x01":
            self.sound = np.concatenate([self.sound, self.reader.push(message[1:])])
        return message

    def until(self, kind: int) -> bytes:
        """The next message of a kind."""
        while (message := self.next())[0] != kind:
            pass
        return message

    def hear(self, n_frames: int) -> np.ndarray:
        """Wait for so many frames more of the agent's sound [S]."""
        start = len(self.sound)
        while len(self.sound) < start + n_frames * 1920:
            self.next()
        return self.sound[start:]

    def converse(self, pcm: np.ndarray) -> list[bytes]:
        """Say frame after frame, each when the one before was answered; all that was received."""
        for frame in pcm.reshape(-1, 1920):
            self.say(frame)
            self.hear(1)
        return self.received

    def end(self) -> tuple[int, str]:
        """What the server closes the call with, all messages before it taken."""
        try:
            while True:
                self.next()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, closed
            return closed.rcvd.code, closed.rcvd.reason

    @property
    def errors(self) -> list[str]:
        return [message[1:].decode() for message in self.received if message[0] == 5]

    @property
    def text(self) -> str:
        return "".join(message[1:].decode() for message in self.received if message[0] == 2)


@contextmanager
def calling(address: str, query: str | dict[str, object] = "", **options: Any) -> Iterator[Caller]:
    """A call to a server at `address` (http://...)."""
    asked = query if isinstance(query, str) else urlencode(query)
    url = f"ws{address.removeprefix('http')}/api/chat{'?' if asked else ''}{asked}"
    with connect(url, compression=None, close_timeout=1, **options) as socket:
        yield Caller(socket)
