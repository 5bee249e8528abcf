"""A caller's sound on its way to the conversation: kept until that listens, and given as fast as it is answered.

What waits is caught up with: sound from before the handshake, what a client had queued, a stall of the network, a
recording that is sent at once. Only if it waits because the machine is slower than speech is some of it shed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

import numpy as np

from personaplex.errors import UsageError
from personaplex.server.moshi.opus import OpusReader
from personaplex.server.session import Session
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

MOST_WAITING_SECONDS = 60.0
"""Sound that may wait: before the handshake more of it ends the call, later its sender waits."""

LATE_SECONDS = 2.0
"""Sound that waits longer, and does not get less within `PATIENCE_SECONDS` though it comes in time, is shed."""

KEPT_SECONDS = 0.5
"""What is left of it."""

PATIENCE_SECONDS = 5.0

_UNANSWERED_SAMPLES = 8 * FRAME_SAMPLES
"""Sound that is given without an answer to the first of it: no conversation sheds so little."""

_TURN_SECONDS = 0.005
"""Decoding for so long, it is the other callers' turn."""


class Ear:
    """One caller's. It belongs to one event loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._reader = OpusReader()
        self._waiting: deque[np.ndarray] = deque()
        self._n_waiting = 0
        self._n_unanswered = 0
        self._is_listening = False
        self._changed = asyncio.Condition()
        self._n_heard = 0
        self._before: tuple[float, int, int] | None = None

    async def hear(self, data: bytes) -> None:
        """Take some of the Ogg-Opus stream. Waits as long as too much is waiting.

        Raises AudioError for what cannot be read, UsageError when too much comes before the conversation listens.
        """
        pcm = await self._decode(data)
        async with self._changed:
            for start in range(0, len(pcm), FRAME_SAMPLES):
                self._waiting.append(pcm[start : start + FRAME_SAMPLES])
            self._n_waiting += len(pcm)
            self._n_heard += len(pcm)
            self._shed_if_late(asyncio.get_running_loop().time())
            self._session.n_waiting = len(self._waiting)
            self._changed.notify_all()
            if self._n_waiting > MOST_WAITING_SECONDS * SAMPLE_RATE and not self._is_listening:
                raise UsageError(f"over {MOST_WAITING_SECONDS:g} s of sound came before the conversation could begin")
            await self._changed.wait_for(lambda: self._n_waiting <= MOST_WAITING_SECONDS * SAMPLE_RATE)

    async def _decode(self, data: bytes) -> np.ndarray:
        pieces, until = [np.zeros(0, np.float32)], time.perf_counter() + _TURN_SECONDS
        for piece in self._reader.pieces(data):
            pieces.append(piece)
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + _TURN_SECONDS
        return np.concatenate(pieces)

    def _shed_if_late(self, now: float) -> None:
        """Every few seconds: a recording comes faster than time, and is waited for; what comes in time is not."""
        if self._before is not None and now - self._before[0] < PATIENCE_SECONDS:
            return
        before, self._before = self._before, (now, self._n_heard, self._n_waiting)
        if before is None or not self._is_listening:
            return
        comes_in_time = (self._n_heard - before[1]) / SAMPLE_RATE < 1.2 * (now - before[0])
        if not comes_in_time or self._n_waiting < max(before[2], LATE_SECONDS * SAMPLE_RATE):
            return
        dropped = 0
        while self._n_waiting > KEPT_SECONDS * SAMPLE_RATE:
            self._n_waiting -= len(self._waiting.popleft())
            dropped += 1
        self._before = now, self._n_heard, self._n_waiting  # that it is less than before shedding says nothing
        self._session.overran(dropped)

    async def listen(self) -> None:
        """The conversation listens now: give it what waits, until this is cancelled. Raises Closed at its end."""
        self._is_listening = True
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._waiting) and self._n_unanswered < _UNANSWERED_SAMPLES)
                piece = self._waiting.popleft()
                self._n_waiting -= len(piece)
                self._n_unanswered += len(piece)
                self._session.n_waiting = len(self._waiting)
                self._changed.notify_all()
            self._session.send(piece)

    async def answered(self) -> None:
        """A frame was answered."""
        async with self._changed:
            self._n_unanswered = max(self._n_unanswered - FRAME_SAMPLES, 0)
            self._changed.notify_all()
