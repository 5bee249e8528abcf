"""The agent's sound on its way to the speaker: just enough of it waiting that a late frame is not a gap."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from personaplex.audio import rms
from personaplex.turns import QUIET_RMS
from personaplex.units import FRAME_RATE, FRAME_SAMPLES

FEWEST_FRAMES = 3
"""Frames that wait before the first is played: two may be late."""

MOST_FRAMES = 12
"""Beyond a second of delay nobody talks naturally; gaps are the lesser evil."""

STEADY_FRAMES = round(10 * FRAME_RATE)
"""Frames without a gap after which one frame fewer is tried."""


class Playout:
    """Frames in from one thread, blocks of any size out to another.

    It begins to play once `depth` frames wait. A gap makes it one frame deeper, ten seconds without one shallower
    again; what then waits in excess is shed where the agent is silent, and beyond `most_excess` frames (None: never)
    wherever it is.
    """

    def __init__(self, most_excess: int | None = round(2 * FRAME_RATE)) -> None:
        self.depth = FEWEST_FRAMES
        self.gaps = 0
        self.shed = 0
        self._most_excess = most_excess
        self._pieces: deque[np.ndarray] = deque()
        self._waiting = 0
        self._playing = False
        self._draining = False
        self._steady = 0
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Samples that are not played yet."""
        return self._waiting

    @property
    def ahead(self) -> int:
        """Samples that the speaker plays before the frame pushed last, silence included as long as it has not begun."""
        with self._lock:
            begun = self._playing or self._draining
            return max(0, max(self._waiting, 0 if begun else self.depth * FRAME_SAMPLES) - FRAME_SAMPLES)

    def push(self, pcm: np.ndarray) -> None:
        """Add a frame [1920] of the agent; what no speaker could play is cut off."""
        pcm = np.clip(pcm, -1.0, 1.0)
        with self._lock:
            self._draining = False
            excess = self._waiting // FRAME_SAMPLES - self.depth
            if self._playing and excess >= 0 and rms(pcm) < QUIET_RMS:
                self.shed += 1
                return
            if self._most_excess is not None and excess >= self._most_excess:
                self._waiting -= len(self._pieces.popleft())
                self.shed += 1
            self._pieces.append(pcm)
            self._waiting += len(pcm)

    def pull(self, n_samples: int) -> np.ndarray:
        """The next `n_samples` for the speaker, float32; silence where there is nothing."""
        out = np.zeros(n_samples, np.float32)
        with self._lock:
            if not self._playing:
                enough = 1 if self._draining else self.depth * FRAME_SAMPLES
                self._playing = self._waiting >= enough
            if not self._playing:
                return out
            filled = self._take(out)
            if filled == n_samples:
                self._be_steady(n_samples)
            else:
                self._run_dry()
        return out

    def drain(self) -> None:
        """Nothing follows for now: what waits is played, and its end is no gap."""
        with self._lock:
            self._draining = True

    def clear(self) -> None:
        """Forget what waits."""
        with self._lock:
            self._pieces.clear()
            self._waiting, self._playing = 0, False

    def _take(self, out: np.ndarray) -> int:
        filled = 0
        while filled < len(out) and self._pieces:
            piece = self._pieces.popleft()
            part = piece[: len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(piece):
                self._pieces.appendleft(piece[len(part) :])
        self._waiting -= filled
        return filled

    def _be_steady(self, n_samples: int) -> None:
        self._steady += n_samples
        if self._steady >= STEADY_FRAMES * FRAME_SAMPLES:
            self._steady = 0
            self.depth = max(FEWEST_FRAMES, self.depth - 1)

    def _run_dry(self) -> None:
        self._playing, self._steady = False, 0
        if not self._draining:
            self.gaps += 1
            self.depth = min(MOST_FRAMES, self.depth + 1)
