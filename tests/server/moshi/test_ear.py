"""A caller's sound on its way to the conversation: nothing of it is lost but on a machine that is too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from personaplex.server.moshi import ear, ogg
from personaplex.server.moshi.ear import Ear
from personaplex.server.moshi.opus import OpusWriter


class Deaf:
    """A session that hears, and answers when it is told to."""

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []
        self.shed = 0
        self.n_waiting = 0

    def send(self, pcm: np.ndarray) -> None:
        self.heard.append(pcm)

    def overran(self, dropped: int) -> None:
        self.shed += dropped

    @property
    def frames(self) -> float:
        return sum(len(pcm) for pcm in self.heard) / 1920


def pages(n_frames: int) -> list[bytes]:
    writer = OpusWriter()
    return [*writer.head(), *(writer.write(np.full(1920, i / 1000, np.float32)) for i in range(n_frames))]


def hearing(test: Callable[[Ear, Deaf], Awaitable[None]]) -> Deaf:
    async def run() -> Deaf:
        session = Deaf()
        heard = Ear(session)  # type: ignore[arg-type]
        await test(heard, session)
        return session

    return asyncio.run(run())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_waits_is_given_as_fast_as_it_is_answered() -> None:
    async def test(heard: Ear, session: Deaf) -> None:
        for page in pages(20):
            await heard.hear(page)
        assert session.frames == 0
        listening = asyncio.create_task(heard.listen())
        await settle()
        assert session.frames == 8 and session.n_waiting == 12
        for n in range(1, 13):
            await heard.answered()
            await settle()
            assert session.frames == 8 + n
        listening.cancel()

    assert hearing(test).shed == 0


def test_pieces_of_any_size_are_answered_by_frames() -> None:
    """NVIDIA's web client sends 40 ms a page."""

    async def test(heard: Ear, session: Deaf) -> None:
        listening = asyncio.create_task(heard.listen())
        await settle()
        for page in pages(8):
            half = len(page) // 2
            await heard.hear(page[:half])
            await heard.hear(page[half:])
        await settle()
        assert session.frames == 8
        listening.cancel()

    hearing(test)


@pytest.mark.parametrize("taken_at", [None, 80])
@pytest.mark.parametrize(("seconds_each", "shed"), [(0.08, True), (0.01, False)])
def test_only_what_comes_in_time_and_is_not_heard_in_time_is_shed(
    monkeypatch: pytest.MonkeyPatch, seconds_each: float, shed: bool, taken_at: int | None
) -> None:
    """A machine that answers nothing: sound of a microphone is shed to half a second, a recording waits."""
    now = 100.0

    async def test(heard: Ear, session: Deaf) -> None:
        nonlocal now
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        listening = asyncio.create_task(heard.listen())
        await settle()
        for number, page in enumerate(pages(150)):
            await heard.hear(page)
            now += seconds_each
            if number == taken_at:  # what the conversation takes without answering is no sign that it keeps up
                await settle()
        assert (heard._n_waiting <= 96_000) == shed
        listening.cancel()

    assert (hearing(test).shed > 0) == shed


def test_its_sender_waits_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ear, "MOST_WAITING_SECONDS", 0.4)

    async def test(heard: Ear, session: Deaf) -> None:
        listening = asyncio.create_task(heard.listen())
        await settle()

        async def send() -> None:
            for page in pages(40):
                await heard.hear(page)

        sending = asyncio.create_task(send())
        await settle()
        assert not sending.done() and session.frames == 8
        for _ in range(40):
            await heard.answered()
            await settle()
        await asyncio.wait_for(sending, 5)
        assert session.frames == 40
        listening.cancel()

    assert hearing(test).shed == 0


def test_a_message_of_thousands_of_packets_keeps_nobody_waiting() -> None:
    packets = [b"\xe0" + bytes(20)] * 1800  # of 2.5 ms each
    sound = [ogg.write_page(one, flags=0, granule=0, serial=42, sequence=2 + n) for n, one in enumerate(packets)]
    stream = pages(0) + sound
    n_turns = 0

    async def test(ear: Ear, session: Deaf) -> None:
        nonlocal n_turns
        hearing = asyncio.create_task(ear.hear(b"".join(stream)))
        while not hearing.done():
            n_turns += 1
            await asyncio.sleep(0)
        await hearing
        assert session.n_waiting == -(-1800 * 60 // 1920)  # all of it

    hearing(test)
    assert n_turns > 5
