"""Work that has no slot of its own: so many at once, a few more wait, the rest are told to come again."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from personaplex.errors import Busy

MOST_WAITING = 16

MOST_SECONDS = 120.0
"""That one waits: those inside may be readers who take their time."""


class Turnstile:
    """`async with turnstile:` as one of `most` at once, after at most `queue` others who wait.

    Raises Busy, also for who waited too long.
    """

    def __init__(self, most: int, queue: int = MOST_WAITING) -> None:
        self.most = most
        self._queue = queue
        self._inside = 0
        self._room = asyncio.Semaphore(most)

    async def __aenter__(self) -> Self:
        if self._inside >= self.most + self._queue:
            raise Busy(self._inside, self.most + self._queue)
        self._inside += 1
        try:
            async with asyncio.timeout(MOST_SECONDS):
                await self._room.acquire()
        except TimeoutError:
            self._inside -= 1
            raise Busy(self.most, self.most) from None
        except BaseException:
            self._inside -= 1
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside -= 1
        self._room.release()
