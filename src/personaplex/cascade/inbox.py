"""The user's frames on their way to a conversation: from any thread, into one event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

import numpy as np

from personaplex.audio import Framer
from personaplex.errors import Closed
from personaplex.units import FRAME_SAMPLES


class Inbox:
    """At most `most` frames wait. What is pushed beyond that sheds the oldest, what is fed waits for room."""

    def __init__(self, most: int, loop: asyncio.AbstractEventLoop) -> None:
        self._most = most
        self._loop = loop
        self._frames: deque[np.ndarray] = deque()
        self._framer = Framer()
        self._changed = threading.Condition()
        self._came = asyncio.Event()
        self._finished = self._closed = False
        self._n_shed = 0

    def push(self, pcm: np.ndarray) -> None:
        """Take float32 [S]. Raises Closed after `finish` or `close`."""
        with self._changed:
            self._check()
            for frame in self._framer.push(pcm):
                self._frames.append(frame.copy())  # a view would keep all of a long piece
                if len(self._frames) > self._most:
                    self._frames.popleft()
                    self._n_shed += 1
        self._wake()

    def feed(self, pcm: np.ndarray, timeout: float | None) -> None:
        """Take float32 [S], frame by frame as there is room. Raises TimeoutError, and Closed as `push` does."""
        until = None if timeout is None else time.monotonic() + timeout
        for start in range(0, len(pcm), FRAME_SAMPLES):
            with self._changed:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not self._changed.wait_for(self._has_room, left):
                    raise TimeoutError(f"the conversation took longer than {timeout:g} s to hear the recording")
            self.push(pcm[start : start + FRAME_SAMPLES])

    def _has_room(self) -> bool:
        return self._closed or self._finished or len(self._frames) < self._most

    def finish(self) -> None:
        """No more will come; what is left of a frame is padded."""
        with self._changed:
            self._check()
            self._frames.extend(self._framer.flush())
            self._finished = True
            self._changed.notify_all()
        self._wake()

    def close(self) -> None:
        """Drop what waits, and refuse the rest."""
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()

    async def next(self) -> np.ndarray | None:
        """The next frame [1920]; None when there will be none."""
        while True:
            with self._changed:
                self._came.clear()
                if self._frames:
                    self._changed.notify_all()
                    return self._frames.popleft()
                if self._finished or self._closed:
                    return None
            await self._came.wait()

    def take_shed(self) -> int:
        """How many frames were shed since this was asked last."""
        with self._changed:
            shed, self._n_shed = self._n_shed, 0
            return shed

    def _check(self) -> None:
        if self._closed or self._finished:
            raise Closed("this conversation has ended")

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._came.set)
