"""Who has the floor: what of the microphone's sound the agent hears, and what of the agent's is played.

In a duplex conversation both speak when they like. Otherwise one speaks after the other: the agent's time stands still
while the user does, and what the user said is given to it at once, so it may be slower than speech.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Protocol

import numpy as np

from personaplex.conversation import AgentEnded, AgentStarted, Audio, Event
from personaplex.turns import QUIET_FRAMES, UserTurn, VoiceActivity
from personaplex.units import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE, frames_in
from personaplex.vad import SpeechDetector

IN_FLIGHT = 4
"""Frames that may be unanswered while an utterance is handed over."""

PATIENCE_FRAMES = round(4 * FRAME_RATE)
"""Frames of silence that the agent is given to begin an answer."""

LONGEST_UTTERANCE_SECONDS = 60.0
LONGEST_ANSWER_SECONDS = 60.0
KEPT_SILENCE_SECONDS = 0.2
"""Of the silence that told us the user's turn was over, so much is heard by the agent."""


class Holder(Enum):
    """Who speaks, as shown to a person."""

    BOTH = "both"
    NOBODY = "listening"
    USER = "you speak"
    AGENT = "agent answers"


class Floor(Protocol):
    """Decides; everything is called in the thread of the loop."""

    @property
    def holder(self) -> Holder:
        """Who speaks now."""

    def hear(self, pcm: np.ndarray) -> None:
        """Take what the microphone heard, [S]."""

    def next(self, owed: int, short: int) -> np.ndarray | None:
        """What the agent shall hear next, [S], or None for nothing now.

        `owed`: frames it has heard and not answered. `short`: so many more should be on their way to the speaker.
        """

    def take(self, event: Event) -> list[Event]:
        """The events that are to be played and shown, now that `event` has come."""

    def press(self) -> bool:
        """Enter was pressed; whether what still waits to be played is cut off."""

    def prompt(self) -> None:
        """Something was written to the agent, which is to answer it now."""

    def release(self) -> None:
        """The microphone's sound is over."""

    def reset(self, n_frames: int = 0) -> None:
        """Another conversation begins, which has lived `n_frames`."""


class Open:
    """Duplex: everything is heard, everything is played."""

    holder = Holder.BOTH

    def __init__(self) -> None:
        self._heard: deque[np.ndarray] = deque()

    def hear(self, pcm: np.ndarray) -> None:
        """Take it on."""
        self._heard.append(pcm)

    def next(self, owed: int, short: int) -> np.ndarray | None:  # noqa: ARG002
        """What was heard, at once: the backend sheds what is too much."""
        return self._heard.popleft() if self._heard else None

    def take(self, event: Event) -> list[Event]:
        """That event."""
        return [event]

    def press(self) -> bool:
        """Nothing to press for."""
        return False

    def prompt(self) -> None:
        """Its time passes anyway."""

    def release(self) -> None:
        """Nothing held."""

    def reset(self, n_frames: int = 0) -> None:  # noqa: ARG002
        """Forget what was not handed on."""
        self._heard.clear()


class Cue(Protocol):
    """Tells whether it is the user's turn. `lead_seconds` of sound before it was told belong to the turn."""

    lead_seconds: float
    tail_seconds: float

    def hear(self, pcm: np.ndarray) -> bool:
        """Whether the user is speaking, after these samples [S]."""

    def press(self) -> None:
        """Enter was pressed."""

    def reset(self) -> None:
        """Begin with nobody speaking."""


class Voice:
    """The user's turn by voice activity."""

    def __init__(self, rule: VoiceActivity) -> None:
        self._rule = rule
        self.lead_seconds = rule.speech_seconds + 0.3
        self.tail_seconds = max(0.0, rule.silence_seconds - KEPT_SILENCE_SECONDS)
        self._detector, self._turn = SpeechDetector(), UserTurn()

    def hear(self, pcm: np.ndarray) -> bool:
        """Listen for speech."""
        for probability in self._detector.push(pcm):
            self._turn = self._turn.after(probability, self._rule)
        return self._turn.speaking

    def press(self) -> None:
        """A voice needs no key."""

    def reset(self) -> None:
        """A new detector, which has heard nothing."""
        self._detector, self._turn = SpeechDetector(), UserTurn()


class Key:
    """The user's turn by Enter: once to begin, once more to end."""

    lead_seconds = 0.0
    tail_seconds = 0.0

    def __init__(self) -> None:
        self._down = False

    def hear(self, pcm: np.ndarray) -> bool:  # noqa: ARG002
        """Whether the key was pressed once."""
        return self._down

    def press(self) -> None:
        """The other way round."""
        self._down = not self._down

    def reset(self) -> None:
        """Not pressed."""
        self._down = False


class Turns:
    """One after the other: the user while `cue` says so, then the agent until its turn is over, then the user again."""

    def __init__(self, cue: Cue) -> None:
        self._cue = cue
        self.holder = Holder.NOBODY
        self._heard: deque[np.ndarray] = deque()
        self._n_heard = 0
        self._utterance: deque[np.ndarray] = deque()
        self._held: list[Event] = []
        self._n_sent = self._begins = self._plays_from = 0
        self._shortest = QUIET_FRAMES  # frames of the shortest answer
        self._agent_speaks = self._answers = False

    def reset(self, n_frames: int = 0) -> None:
        """Nobody speaks."""
        self._n_sent = n_frames
        self._agent_speaks = False
        self._listen()

    def hear(self, pcm: np.ndarray) -> None:
        """Collect the user's turn; while the agent answers, nothing is heard."""
        if self.holder is Holder.AGENT:
            return
        if self.holder is Holder.NOBODY:
            self._forget(self._cue.lead_seconds)
        speaking = self._cue.hear(pcm)
        self._heard.append(pcm)
        self._n_heard += len(pcm)
        if self.holder is Holder.NOBODY:
            self.holder = Holder.USER if speaking else Holder.NOBODY
        elif not speaking or self._n_heard > LONGEST_UTTERANCE_SECONDS * SAMPLE_RATE:
            self._hand_over()

    def next(self, owed: int, short: int) -> np.ndarray | None:
        """The utterance, as fast as it is answered; then silence, as fast as the answer is played."""
        if self.holder is not Holder.AGENT or owed >= IN_FLIGHT or not (self._utterance or short > 0):
            return None
        self._n_sent += 1
        return self._utterance.popleft() if self._utterance else np.zeros(FRAME_SAMPLES, np.float32)

    def take(self, event: Event) -> list[Event]:
        """The answer. Of what the agent says into the utterance only a turn that outlasts it is played."""
        if isinstance(event, AgentStarted | AgentEnded):
            self._agent_speaks = isinstance(event, AgentStarted)
        if self.holder is not Holder.AGENT:
            return []
        if event.frame < self._plays_from:
            self._held = [*self._held, event] if self._agent_speaks else []
            return []
        released, self._held = [*self._held, event], []
        self._answers = self._answers or self._agent_speaks
        if self._is_answered(event):
            self._listen()
        return released

    def press(self) -> bool:
        """Cut the agent off; with a key as the cue, that begins the user's turn."""
        cuts = self.holder is Holder.AGENT
        if cuts:
            self._listen()
        self._cue.press()
        return cuts

    def prompt(self) -> None:
        """Let the agent's time pass, with nothing to hear. Who is speaking finishes first."""
        if self.holder is not Holder.USER:
            # What ends now is the answer that this cuts short, if one was being given.
            self._shortest = QUIET_FRAMES if self.holder is Holder.AGENT else 0
            self._begins = self._n_sent + len(self._utterance)
            if self.holder is Holder.NOBODY:
                self._plays_from = self._begins
            self._answers = False
            self.holder = Holder.AGENT

    def release(self) -> None:
        """The user's turn is over whatever the cue says."""
        if self.holder is Holder.USER and isinstance(self._cue, Key):
            self._hand_over()

    def _is_answered(self, event: Event) -> bool:
        since = event.frame - self._begins
        if isinstance(event, AgentEnded):
            # A word thrown in while the user spoke is no answer.
            self._answers = since >= self._shortest
            return self._answers
        patience = LONGEST_ANSWER_SECONDS * FRAME_RATE if self._answers else PATIENCE_FRAMES
        return isinstance(event, Audio) and since >= patience

    def _listen(self) -> None:
        """It is the user's turn again, whenever they like."""
        self.holder = Holder.NOBODY
        self._cue.reset()
        self._heard.clear()
        self._n_heard = 0
        self._utterance.clear()
        self._held = []
        self._answers = False

    def _forget(self, but_seconds: float) -> None:
        while self._heard and self._n_heard - len(self._heard[0]) >= but_seconds * SAMPLE_RATE:
            self._n_heard -= len(self._heard.popleft())

    def _hand_over(self) -> None:
        """The user's turn is over: the agent hears it, in whole frames, and answers."""
        pcm = np.concatenate([*self._heard, np.zeros(0, np.float32)])
        pcm = pcm[: max(FRAME_SAMPLES, len(pcm) - round(self._cue.tail_seconds * SAMPLE_RATE))]
        pcm = np.pad(pcm, (0, frames_in(len(pcm)) * FRAME_SAMPLES - len(pcm)))
        self._heard.clear()
        self._utterance = deque(pcm.reshape(-1, FRAME_SAMPLES))
        self._begins = self._plays_from = self._n_sent + len(self._utterance)
        self._shortest = QUIET_FRAMES
        self.holder = Holder.AGENT
