"""What a session has told its client: numbered, and kept for a while, for a client whose connection breaks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_BYTES = 8 << 20
"""Of the newest messages so many are kept; sound as pcm16 takes 64 kB a second."""


class Kept(NamedTuple):
    """A message with its number; `sounds`: it holds 80 ms of the agent."""

    seq: int
    text: str
    sounds: bool


class Journal:
    """Messages in order. `seq` is the number of the last."""

    def __init__(self, prefix: str, most_bytes: int = MOST_BYTES) -> None:
        self.seq = 0
        self._prefix = prefix
        self._most_bytes = most_bytes
        self._kept: deque[Kept] = deque()
        self._n_bytes = 0

    def add(self, event: Mapping[str, Any], *, sounds: bool = False) -> Kept:
        """Number an event, write it down and keep it."""
        self.seq += 1
        about = {"event_id": f"event_{self._prefix}_{self.seq}", "server_event_seq": self.seq, **event}
        kept = Kept(self.seq, json.dumps(about, separators=(",", ":")), sounds)
        self._kept.append(kept)
        self._n_bytes += len(kept.text)
        while self._n_bytes > self._most_bytes and len(self._kept) > 1:
            self._n_bytes -= len(self._kept.popleft().text)
        return kept

    @staticmethod
    def unnumbered(event: Mapping[str, Any]) -> Kept:
        """A message about the connection, and none of the session: it is not told again."""
        return Kept(0, json.dumps(event, separators=(",", ":")), sounds=False)

    def forget(self, seq: int) -> None:
        """The client has everything up to `seq`."""
        while self._kept and self._kept[0].seq <= seq:
            self._n_bytes -= len(self._kept.popleft().text)

    def after(self, seq: int) -> list[Kept] | None:
        """What followed message `seq`; None where some of it is not kept any more, or `seq` was never told."""
        if seq > self.seq:
            return None
        first = self._kept[0].seq if self._kept else self.seq + 1
        return None if seq + 1 < first else [kept for kept in self._kept if kept.seq > seq]
