"""A caller's sound on its way to the conversation: kept until that listens, and never faster than time goes by."""

from __future__ import annotations

import asyncio

import numpy as np

from personaplex.conversation import Conversation
from personaplex.errors import UsageError
from personaplex.server.moshi.opus import OpusReader
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

MOST_KEPT_SECONDS = 60.0
"""Sound that is kept while voice and role are read."""

LEAD_SECONDS = 0.8
"""How far a recording may be sent ahead of time; then its sender waits. Less than what a conversation lets wait."""

_UNANSWERED_FRAMES = 8
"""Frames of what was kept that are given without an answer to the first: no conversation sheds so few."""


class Ear:
    """One caller's. It belongs to one event loop."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._reader = OpusReader()
        self._kept: list[np.ndarray] | None = []
        self._n_kept = 0
        self._n_heard = 0
        self._n_unanswered = 0
        self._answered = asyncio.Event()
        self._began = 0.0

    async def hear(self, data: bytes) -> None:
        """Take some of the Ogg-Opus stream. Waits if it comes faster than it can have been recorded.

        Raises AudioError for what cannot be read, UsageError when more comes than can be kept, Closed at the end.
        """
        pcm = self._reader.push(data)
        if not len(pcm):
            return
        now = asyncio.get_running_loop().time()
        if not self._n_heard:
            self._began = now
        self._n_heard += len(pcm)
        if self._kept is None:
            self._conversation.send(pcm)
        else:
            self._keep(pcm)
        await asyncio.sleep(max(self._n_heard / SAMPLE_RATE - (now - self._began) - LEAD_SECONDS, 0.0))

    def _keep(self, pcm: np.ndarray) -> None:
        assert self._kept is not None
        self._n_kept += len(pcm)
        if self._n_kept > MOST_KEPT_SECONDS * SAMPLE_RATE:
            raise UsageError(f"more than {MOST_KEPT_SECONDS:.0f} s of sound came before the conversation could begin")
        self._kept.append(pcm)

    async def listen(self) -> None:
        """The conversation listens now: give it what was kept, as fast as it can hear, and then what comes."""
        while self._kept:
            pcm, self._kept = np.concatenate(self._kept), []
            for start in range(0, len(pcm), FRAME_SAMPLES):
                while self._n_unanswered >= _UNANSWERED_FRAMES:
                    self._answered.clear()
                    await self._answered.wait()
                piece = pcm[start : start + FRAME_SAMPLES]
                self._n_kept -= len(piece)
                self._n_unanswered += 1
                self._conversation.send(piece)
        self._kept = None

    def answered(self) -> None:
        """A frame was answered."""
        self._n_unanswered = max(self._n_unanswered - 1, 0)
        self._answered.set()
