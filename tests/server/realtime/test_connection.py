"""What waits for a reader who does not read is bounded, in sound and in bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from personaplex.server.realtime import connection as module
from personaplex.server.realtime.connection import Connection
from personaplex.server.realtime.journal import Kept


class Socket:
    """Takes `room` messages, and then no more."""

    def __init__(self, room: int) -> None:
        self.room = asyncio.Semaphore(room)
        self.taken: list[str] = []
        self.closed: tuple[int, str] | None = None

    async def send_text(self, text: str) -> None:
        await self.room.acquire()
        self.taken.append(text)

    async def close(self, code: int, reason: str) -> None:
        self.closed = code, reason


def hold(socket: Any, patience: float) -> Connection:
    return Connection(socket, patience)


@pytest.mark.parametrize(("sounds", "most"), [(True, 25), (False, 100)])
def test_so_much_waits_and_no_more(monkeypatch: pytest.MonkeyPatch, sounds: bool, most: int) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)

    async def send() -> None:
        socket = Socket(0)
        connection = hold(socket, 2.0)  # two seconds are 25 frames
        text = "a" if sounds else "ten bytes."
        for n in range(most):
            connection.send(Kept(n, text, sounds))
            assert not connection.too_slow
        connection.send(Kept(most, text, sounds))
        assert connection.too_slow
        async with asyncio.timeout(1.0):
            await connection.wait()
        assert not socket.taken and socket.closed is None

    asyncio.run(send())


def test_a_message_that_is_not_taken_for_long_ends_it() -> None:
    async def send() -> None:
        connection = hold(Socket(0), 0.05)
        connection.send(Kept(1, "a", False))
        async with asyncio.timeout(5.0):
            await connection.wait()
        assert connection.too_slow

    asyncio.run(send())


def test_all_is_sent_before_it_is_closed() -> None:
    async def send() -> None:
        socket = Socket(100)
        connection = hold(socket, 10.0)
        for n in range(50):
            connection.send(Kept(n, str(n), True))
        connection.close(1012, "shutdown")
        connection.send(Kept(51, "too late", True))
        await connection.wait()
        assert socket.taken == [str(n) for n in range(50)] and socket.closed == (1012, "shutdown")

    asyncio.run(send())


def test_a_reader_who_does_not_take_the_end_either_is_not_waited_for() -> None:
    class Stuck(Socket):
        async def close(self, code: int, reason: str) -> None:
            await asyncio.Event().wait()

    async def send() -> None:
        connection = hold(Stuck(100), 0.05)
        connection.close(1000, "over")
        async with asyncio.timeout(5.0):
            await connection.wait()

    asyncio.run(send())
