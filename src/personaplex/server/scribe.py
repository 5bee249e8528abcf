"""Who writes a live conversation down: from the events that its reader is given, turn by turn, into the history."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

from personaplex.audio import Framer, as_chunk
from personaplex.conversation import (
    AgentEnded,
    AgentText,
    AnswerOver,
    Audio,
    Ended,
    Event,
    Interrupted,
    Overrun,
    Ready,
    UserText,
)
from personaplex.errors import AudioError
from personaplex.server.history.store import Transcript
from personaplex.units import FRAME_SAMPLES

MOST_UNANSWERED = 750
"""Frames of the user that are held until the agent's of the same time comes: a minute."""

MOST_TEXT = 20_000
"""Characters of the agent after which a turn is written down, ended or not."""


class Scribe:
    """Any thread may call. `records`: the sound is kept too, agent and user side by side."""

    def __init__(self, transcript: Transcript, persona: str | None, *, records: bool = False) -> None:
        self.transcript = transcript
        self._persona = persona
        self._records = records
        self._lock = threading.Lock()
        self._said = ""
        self._framer = Framer()
        self._user: deque[np.ndarray] = deque(maxlen=MOST_UNANSWERED)

    def heard(self, pcm: np.ndarray) -> None:
        """The user's sound [S], as it was given to the conversation."""
        if not self._records:
            return
        try:
            chunk = as_chunk(pcm)
        except AudioError:
            return  # whoever gave it is told by the conversation, and nothing of it is heard
        with self._lock:
            self._user.extend(self._framer.push(chunk))

    def typed(self, text: str) -> None:
        """What the user said in writing."""
        self._turn()
        self.transcript.say("user", text)

    def saw(self, event: Event | None) -> None:
        """Something happened."""
        if isinstance(event, AgentText):
            with self._lock:
                self._said += event.text
            if len(self._said) > MOST_TEXT:
                self._turn()
        elif isinstance(event, UserText) and event.final and event.text.strip():
            self._turn()
            self.transcript.say("user", event.text.strip())
        elif isinstance(event, AgentEnded | AnswerOver | Interrupted | Ready | Ended):
            self._turn()
        if self._records:
            self._record(event)

    def _turn(self) -> None:
        """What the agent said up to now is a turn."""
        with self._lock:
            said, self._said = self._said.strip(), ""
        if said:
            self.transcript.say("assistant", said, persona=self._persona)

    def _record(self, event: Event | None) -> None:
        with self._lock:
            if isinstance(event, Overrun):
                for _ in range(min(event.dropped, len(self._user))):
                    self._user.popleft()
            elif isinstance(event, Audio):
                user = self._user.popleft() if self._user else np.zeros(FRAME_SAMPLES, np.float32)
                self.transcript.hear(event.pcm, user)
            elif isinstance(event, Ended):
                self.transcript.flush()

    def close(self) -> None:
        """Nobody reads any more: what was said is written down as far as it goes."""
        self._turn()
        with self._lock:
            self.transcript.flush()
