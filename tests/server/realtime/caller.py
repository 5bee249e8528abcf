"""A client of `/v1/realtime` for tests: JSON over a real socket, and nothing clever."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

WAIT = 20.0


class Caller:
    """One connection. `told` is all that was received so far."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.told: list[dict[str, Any]] = []

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def speak(self, pcm: np.ndarray) -> None:
        """Send float32 [S] as pcm16."""
        data = (np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes()
        for at in range(0, len(data), 300_000):
            self.say("input_audio_buffer.append", audio=b64encode(data[at : at + 300_000]).decode())

    def type(self, text: str) -> None:
        """Write something and ask for an answer."""
        content = [{"type": "input_text", "text": text}]
        self.say("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        self.say("response.create")

    def next(self) -> dict[str, Any]:
        """The next event. Raises ConnectionClosed, TimeoutError."""
        event: dict[str, Any] = json.loads(self.socket.recv(WAIT))
        self.told.append(event)
        return event

    def until(self, kind: str, fits: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The next event of a kind."""
        while (event := self.next())["type"] != kind or not fits(event):
            pass
        return event

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.told if event["type"] == kind]

    def end(self) -> tuple[int, str]:
        """What the server closes with, all events before it taken."""
        try:
            while True:
                self.next()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, closed
            return closed.rcvd.code, closed.rcvd.reason

    def cut(self) -> None:
        """Have the connection break, without a word."""
        self.socket.socket.close()

    @property
    def sound(self) -> bytes:
        return b"".join(b64decode(event["delta"]) for event in self.of("response.output_audio.delta"))

    @property
    def session(self) -> dict[str, Any]:
        found: dict[str, Any] = self.of("session.created")[0]["session"]
        return found


@contextmanager
def calling(address: str, query: str = "mode=cascade", **options: Any) -> Iterator[Caller]:
    """A connection, told who it is."""
    with connect(f"{address}/v1/realtime?{query}", compression=None, close_timeout=1, **options) as socket:
        caller = Caller(socket)
        caller.next()  # session.created, or why not
        yield caller
