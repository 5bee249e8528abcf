"""The user's sound on its way to a conversation: any amount at once, given no faster than it is heard."""

from __future__ import annotations

from collections import deque

import numpy as np

from personaplex.server.realtime.machine import Do
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

AHEAD_FRAMES = 8
"""Frames that a conversation may hold unheard; of more than about a second it would shed the oldest."""

MOST_SECONDS = 60.0
"""So much may wait in a burst, such as a recording that is sent at once."""

LATE_SECONDS = 1.0
"""Beyond what the client sent ahead of time, so much may wait: then the server is too slow, and the oldest is shed."""


class Intake:
    """Sound, and what is to be done once the sound before it was heard."""

    def __init__(self) -> None:
        self._items: deque[np.ndarray | Do] = deque()
        self._n_waiting = 0
        self._n_given = 0
        self._ahead, self._at = 0.0, 0.0
        self._kept_up = False
        self.n_shed = 0
        """Samples that were shed so far."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    def push(self, pcm: np.ndarray, now: float) -> int:
        """Take sound [S] that came at `now` seconds; how many samples were shed for it."""
        self._ahead = max(0.0, self._ahead - (now - self._at)) + len(pcm) / SAMPLE_RATE
        self._at = now
        last = self._items[-1] if self._items else None
        if isinstance(last, np.ndarray) and len(last) < FRAME_SAMPLES:  # thousands of crumbs are a few pieces
            self._items[-1] = np.concatenate([last, pcm])
        else:
            self._items.append(pcm)
        self._n_waiting += len(pcm)
        # Who was kept waiting for the beginning is not behind through a fault of theirs or ours: it is caught up with.
        may_wait = min(MOST_SECONDS, self._ahead + LATE_SECONDS if self._kept_up else MOST_SECONDS)
        return self._shed(self._n_waiting - round(may_wait * SAMPLE_RATE))

    def _shed(self, n: int) -> int:
        if n <= 0:
            return 0
        left, kept = n, list[np.ndarray | Do]()
        while left:
            item = self._items.popleft()
            if isinstance(item, Do):
                kept.append(item)
                continue
            if len(item) > left:
                kept.append(item[left:])
            left -= min(left, len(item))
        self._items.extendleft(reversed(kept))
        self._n_waiting -= n
        self.n_shed += n
        return n

    def put(self, do: Do) -> None:
        """Something to do after all that came before."""
        self._items.append(do)

    def drop(self) -> None:
        """Forget what was not given yet, back to the end of the last turn."""
        while self._items:
            item = self._items[-1]
            if isinstance(item, Do) and item.what == "end_turn":
                break
            self._items.pop()
            self._n_waiting -= len(item) if isinstance(item, np.ndarray) else 0

    def next(self, n_lived: int) -> np.ndarray | Do | None:
        """What the conversation is to be given or asked, now that it has lived `n_lived` frames; None for nothing."""
        while self._items:
            head = self._items[0]
            if isinstance(head, Do):
                if head.what != "begin_turn" and self._n_given > n_lived * FRAME_SAMPLES:
                    rest = -self._n_given % FRAME_SAMPLES
                    self._n_given += rest
                    return np.zeros(rest, np.float32) if rest else None
                self._items.popleft()
                return head
            room = (n_lived + AHEAD_FRAMES) * FRAME_SAMPLES - self._n_given
            if room <= 0:
                return None
            piece = head[:room]
            if len(piece) < len(head):
                self._items[0] = head[room:]
            else:
                self._items.popleft()
            self._n_waiting -= len(piece)
            self._n_given += len(piece)
            if len(piece):
                return piece
        self._kept_up = self._kept_up or n_lived > 0
        return None
