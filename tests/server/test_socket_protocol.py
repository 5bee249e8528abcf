"""One connection's bytes, however many messages they are, keep nobody else waiting, and are all read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from personaplex.server.socket_protocol import SocketProtocol

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
N = 10_000
TEXTS = [f"{n:04d}" for n in range(N)]
MESSAGES = b"".join(b"\x81\x84\0\0\0\0" + text.encode() for text in TEXTS)
"""As a client masks them."""


class Wire(asyncio.Transport):
    """What is written is counted, and read by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.n_written = 0
        self.paused = self.closing = False

    def write(self, data: Any) -> None:
        self.n_written += len(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def connected(test: Callable[[SocketProtocol, Wire], Awaitable[None]]) -> list[dict[str, Any]]:
    """What a route was given of it."""
    events: list[dict[str, Any]] = []

    async def route(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while not events or events[-1]["type"] == "websocket.receive":
            events.append(await receive())

    async def run() -> None:
        config = uvicorn.Config(route, ws=SocketProtocol, ws_per_message_deflate=False, log_config=None)
        config.load()
        protocol, wire = SocketProtocol(config, ServerState(), {}), Wire()
        protocol.connection_made(wire)
        protocol.data_received(HANDSHAKE)
        while not wire.n_written:
            await asyncio.sleep(0)
        await test(protocol, wire)
        while protocol.tasks:
            await asyncio.sleep(0)

    async def in_time() -> None:
        await asyncio.wait_for(run(), 20)

    asyncio.run(in_time())
    return events


def test_of_ten_thousand_messages_at_once_each_turn_takes_a_few_and_all_are_read_in_order() -> None:
    turns: list[int] = []

    async def test(protocol: SocketProtocol, wire: Wire) -> None:
        protocol.data_received(MESSAGES)
        while protocol.queue.qsize() or wire.paused:
            turns.append(protocol.queue.qsize())
            await asyncio.sleep(0)
        protocol.connection_lost(None)

    events = connected(test)
    assert [event["text"] for event in events[:-1]] == TEXTS
    assert events[-1]["type"] == "websocket.disconnect"
    assert 0 < max(turns) < 1000 and len(turns) > 20


def test_what_had_come_when_the_line_broke_is_read_before_its_end_is_told() -> None:
    async def test(protocol: SocketProtocol, wire: Wire) -> None:
        protocol.data_received(MESSAGES)
        wire.close()
        protocol.connection_lost(ConnectionResetError())

    events = connected(test)
    assert [event["text"] for event in events[:-1]] == TEXTS
    assert events[-1]["type"] == "websocket.disconnect"


def test_pongs_do_not_pile_up_for_a_peer_that_takes_none() -> None:
    async def test(protocol: SocketProtocol, wire: Wire) -> None:
        before = wire.n_written
        protocol.data_received(b"\x89\x80\0\0\0\0")
        assert wire.n_written == before + 2
        protocol.pause_writing()
        for _ in range(100):
            protocol.data_received(b"\x89\x80\0\0\0\0" * 100)
        assert wire.n_written == before + 2
        protocol.resume_writing()
        protocol.connection_lost(None)

    connected(test)


def test_text_that_is_none_ends_the_connection_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def test(protocol: SocketProtocol, wire: Wire) -> None:
        protocol.data_received(MESSAGES[:10] + b"\x81\x82\0\0\0\0\xff\xfe" + MESSAGES[:10])
        assert wire.closing

    events = connected(test)
    assert [event["type"] for event in events] == ["websocket.receive", "websocket.disconnect"]
    assert events[-1]["code"] == 1007 and not caplog.records
