"""What waits to be played, with the text that belongs to it; frames are taken out one by one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

import numpy as np
import soxr

from personaplex.cascade.engine import Piece
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

MOST_SECONDS = 20.0
"""So much may wait: a long answer is made into sound as it is played."""


class Mark(NamedTuple):
    """A text that is said once sample `at` was played."""

    at: int
    text: str


class Mouth:
    """A queue of sound at 24 kHz."""

    def __init__(self) -> None:
        self.held = False
        self._pieces: deque[np.ndarray] = deque()
        self._marks: deque[Mark] = deque()
        self._n_waiting = self._n_played = 0
        self._taken = asyncio.Event()

    @property
    def n_waiting(self) -> int:
        """Samples that wait."""
        return self._n_waiting

    def push(self, pcm: np.ndarray, marks: Sequence[Mark] = ()) -> None:
        """Add sound [S]; the marks count from its first sample."""
        end = self._n_played + self._n_waiting
        self._marks.extend(Mark(end + min(mark.at, len(pcm)), mark.text) for mark in marks)
        self._pieces.append(pcm)
        self._n_waiting += len(pcm)

    async def say(self, pieces: AsyncGenerator[Piece, None], text: str, voiced: Callable[[], None]) -> None:
        """Add what a synthesiser makes of `text`, as there is room for it; `voiced` is called after each piece."""
        resampler = None
        async with aclosing(pieces) as made:
            async for piece in made:
                await self.room()
                marks = [Mark(round(word.end * SAMPLE_RATE), word.text + " ") for word in piece.words]
                if resampler is None:
                    resampler = soxr.ResampleStream(piece.rate, SAMPLE_RATE, 1, dtype="float32")
                    marks = marks or [Mark(0, text + " ")]
                self.push(resampler.resample_chunk(np.asarray(piece.pcm, np.float32)), marks)
                voiced()
        if resampler is not None:
            self.push(resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def next(self) -> tuple[np.ndarray, str]:
        """The next frame [1920], padded with silence, and the text that was said when it has been played."""
        frame, n = np.zeros(FRAME_SAMPLES, np.float32), 0
        while not self.held and self._pieces and n < FRAME_SAMPLES:
            piece = self._pieces.popleft()
            part, rest = piece[: FRAME_SAMPLES - n], piece[FRAME_SAMPLES - n :]
            frame[n : n + len(part)] = part
            n += len(part)
            if len(rest):
                self._pieces.appendleft(rest)
        self._n_played += n
        self._n_waiting -= n
        said = ""
        while not self.held and self._marks and self._marks[0].at <= self._n_played:
            said += self._marks.popleft().text
        self._taken.set()
        return frame, said

    def clear(self) -> None:
        """Play nothing of what waits."""
        self._pieces.clear()
        self._marks.clear()
        self._n_waiting = 0
        self._taken.set()

    async def room(self) -> None:
        """Wait until there is room for more."""
        while self._n_waiting > MOST_SECONDS * SAMPLE_RATE:
            self._taken.clear()
            await self._taken.wait()
