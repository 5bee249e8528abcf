"""What is written down of a session: its transcript, and its sound where that was asked for."""

from __future__ import annotations

import asyncio

import numpy as np

from personaplex.conversation import AgentEnded, AgentText, AnswerOver, Audio, Ended, Event, UserText
from personaplex.server.history.store import Transcript
from personaplex.units import FRAME_SAMPLES

MOST_TEXT = 20_000
"""Characters of the agent after which a turn is written down, ended or not."""


class Minutes:
    """Of one session. `recording`: sound, too."""

    def __init__(self, transcript: Transcript, persona: str, *, recording: bool) -> None:
        self._transcript = transcript
        self._persona = persona
        self._recording = recording
        self._said = ""
        self._given = np.zeros(0, np.float32)
        self._settling: asyncio.Task[bool] | None = None

    def given(self, pcm: np.ndarray) -> None:
        """What the conversation was given of the user's sound, [S]."""
        if self._recording:
            self._given = np.concatenate([self._given, pcm])

    def happened(self, event: Event) -> None:
        """An event of the conversation."""
        match event:
            case UserText(text=text, final=True) if text:
                self._transcript.say("user", text)
            case AgentText(text=text):
                self._said += text
                if len(self._said) > MOST_TEXT:
                    self._write()
            case AgentEnded() | AnswerOver():
                self._write()
            case Audio(pcm=pcm) if self._recording:
                user, self._given = self._given[:FRAME_SAMPLES], self._given[FRAME_SAMPLES:]
                self._transcript.hear(pcm, np.pad(user, (0, len(pcm) - len(user))))
            case Ended():
                self.end()

    def typed(self, text: str) -> None:
        """What the user wrote."""
        self._transcript.say("user", text)

    def _write(self) -> None:
        said, self._said = self._said.strip(), ""
        if said:
            self._transcript.say("assistant", said, persona=self._persona)

    def end(self) -> None:
        """Nothing more is said. Does not wait until it is written."""
        if self._settling is None:
            self._write()
            self._settling = asyncio.get_running_loop().create_task(self._transcript.settle())
