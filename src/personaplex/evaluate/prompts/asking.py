"""Conversations in which a question is asked, through the seam that every backend keeps, many at a time.

A user and an agent live frame by frame: what the user does in a frame depends on what the agent did up to
`AHEAD` frames before, never on how fast anything ran. So a seed repeats a conversation, whatever its neighbours do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np

from personaplex.audio import rms
from personaplex.conversation import (
    AgentText,
    Audio,
    Conversation,
    Degenerate,
    Ended,
    Error,
    Event,
    Overrun,
    Settings,
)
from personaplex.errors import ConversationError, PersonaPlexError
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.result import Failure
from personaplex.talk import StopRule
from personaplex.turns import QUIET_RMS
from personaplex.units import FRAME_RATE, FRAME_SAMPLES

AHEAD = 2
"""Frames of the user that are on their way while the agent's answer to them is not known: steps need not wait."""
BREATH = 12
"""Frames in which the agent must be quiet before the user begins: 1 s."""
LONGEST_GREETING = 190
"""Frames after which the user begins whatever the agent does: 15 s."""
LOST_SECONDS = 600.0
"""A frame that has not come after so long will not come."""


class Backend(Protocol):
    """Whatever conversations can be held with."""

    def open(self, settings: Settings = ...) -> Conversation:
        """Begin a conversation."""


@dataclass(frozen=True)
class Answer:
    """One conversation. Frames count from the first; `user` and `agent` are all of both sides, float32 [S] at 24 kHz.

    `began` is the frame with the question's first sample, `ended` the one after its last that is heard. `text` holds
    (frame, text completed in it). `degenerate` are the signs that the backend told of.
    """

    question: Question
    seed: int
    began: int
    ended: int
    user: np.ndarray = field(repr=False)
    agent: np.ndarray = field(repr=False)
    text: tuple[tuple[int, str], ...]
    degenerate: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of which question, with which seed."""
        return f"{self.question.name} (seed {self.seed})"

    @property
    def said(self) -> str:
        """What the agent says from the question's beginning on."""
        return "".join(text for frame, text in self.text if frame >= self.began).strip()

    @property
    def all_said(self) -> str:
        """All that it says."""
        return "".join(text for _, text in self.text).strip()

    @property
    def sound(self) -> np.ndarray:
        """How that sounds: from the question's beginning on, as `said`."""
        return self.agent[self.began * FRAME_SAMPLES :]

    @property
    def delay_ms(self) -> float | None:
        """Milliseconds from the question's end to the frame of the answer's first word; None without one.

        Below 0 for an answer that begins before the question has ended.
        """
        frames = [frame for frame, text in self.text if frame >= self.began and text.strip()]
        return (frames[0] - self.ended) * 1000 / FRAME_RATE if frames else None


class _User:
    """Waits for the moment, says the question, and listens to the answer."""

    def __init__(self, question: Question, pcm: np.ndarray) -> None:
        n_frames = -(-len(pcm) // FRAME_SAMPLES)
        self._frames = np.pad(pcm, (0, n_frames * FRAME_SAMPLES - len(pcm))).reshape(n_frames, FRAME_SAMPLES)
        self._n_heard = int(
            np.flatnonzero([rms(frame) >= QUIET_RMS for frame in self._frames] or [True]).max(initial=0)
        )
        self._rule = StopRule(limit=round(question.listen_seconds * FRAME_RATE))
        self._waits = question.waits
        self._heard = self._quiet = self._since_end = 0
        self._greeted = self._answered = False
        self.n_said = 0
        self.began: int | None = None

    @property
    def ended(self) -> int:
        """The frame after the question's last that is heard: a recording may end in silence."""
        return 0 if self.began is None else self.began + self._n_heard + 1

    def say(self) -> np.ndarray:
        """The next frame [1920]."""
        at, self.n_said = self.n_said, self.n_said + 1
        if self.began is None and self._is_time():
            self.began = at
        if self.began is not None and at < self.began + len(self._frames):
            return np.asarray(self._frames[at - self.began])
        return np.zeros(FRAME_SAMPLES, np.float32)

    def hear(self, *, sounds: bool) -> bool:
        """The agent's next frame: it sounds, or says a word, or does not. Whether the conversation is over with it."""
        at, self._heard = self._heard, self._heard + 1
        self._quiet = 0 if sounds else self._quiet + 1
        if self.began is None:
            self._greeted = self._greeted or sounds
            return False
        if at < self.ended:
            return False
        self._answered = self._answered or sounds
        enough = self._rule.pause if self._answered else self._rule.patience
        since_end = at + 1 - self.ended
        return since_end >= self._rule.limit or min(since_end, self._quiet) >= enough

    def _is_time(self) -> bool:
        if not self._waits or self._heard >= LONGEST_GREETING:
            return True
        return self._quiet >= (BREATH if self._greeted else self._rule.patience)


def ask(backend: Backend, question: Question, pcm: np.ndarray, settings: Settings, seed: int) -> Answer:
    """Hold one conversation: the question `pcm` [S], asked when it is time. Raises what ended it before its end."""
    user, sent, heard = _User(question, pcm), list[np.ndarray](), list[np.ndarray]()
    text: list[tuple[int, str]] = []
    signs: list[str] = []
    sounds = is_over = False
    with backend.open(settings) as call:
        events = call.events()
        while not is_over:
            while len(sent) < len(heard) + AHEAD:
                sent.append(user.say())
                call.send(sent[-1])
            event = _checked(events.get(LOST_SECONDS))
            if isinstance(event, AgentText):
                text.append((event.frame, event.text))
                sounds = sounds or bool(event.text.strip())
            elif isinstance(event, Degenerate):
                signs.append(event.kind)
            elif isinstance(event, Audio):
                # All that belongs to a frame has been told when the next one comes.
                is_over = bool(heard) and user.hear(sounds=sounds)
                if not is_over:
                    heard.append(event.pcm)
                    sounds = rms(event.pcm) >= QUIET_RMS
    assert user.began is not None
    n = len(heard)
    return Answer(
        question,
        seed,
        user.began,
        user.ended,
        np.concatenate(sent[:n]),
        np.concatenate(heard),
        tuple((frame, piece) for frame, piece in text if frame < n),
        tuple(dict.fromkeys(signs)),
    )


def _checked(event: Event | None) -> Event:
    if event is None:
        raise ConversationError(f"the agent has not answered a frame for {LOST_SECONDS:.0f} s")
    if isinstance(event, Error):
        raise event.error
    if isinstance(event, Ended):
        raise ConversationError(f"the conversation ended before its end ({event.reason})")
    if isinstance(event, Overrun):
        raise ConversationError(f"{event.dropped} frames of the question were not heard")
    return event


@dataclass(frozen=True)
class Asked:
    """A question with its sound, how its conversation starts, and the seeds to ask it with."""

    question: Question
    pcm: np.ndarray = field(repr=False)
    settings: Callable[[int], Settings]
    seeds: Sequence[int]


def ask_all(backend: Backend, asked: Sequence[Asked], slots: int) -> Iterator[Answer | Failure]:
    """Every question with every seed, `slots` conversations at a time, in order. What fails is a Failure.

    No more are held than twice that: who takes them slowly (a recogniser) keeps the rest waiting.
    """

    def one(each: Asked, seed: int) -> Answer | Failure:
        try:
            return ask(backend, each.question, each.pcm, each.settings(seed), seed)
        except PersonaPlexError as error:
            return Failure(f"{each.question.name} (seed {seed})", str(error))

    workers = ThreadPoolExecutor(slots, thread_name_prefix="personaplex-asking")
    try:
        todo = ((each, seed) for each in asked for seed in each.seeds)
        running = deque(workers.submit(one, *next_one) for next_one in islice(todo, 2 * slots))
        while running:
            yield running.popleft().result()
            running.extend(workers.submit(one, *next_one) for next_one in islice(todo, 1))
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
