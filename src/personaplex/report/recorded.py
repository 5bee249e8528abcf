"""A conversation that was recorded: both sides' sound, what was said when, and what the model told of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from personaplex.steps import StepRecord
from personaplex.units import SAMPLE_RATE
from personaplex.vad import LevelDetector

MATCH_SECONDS = 0.5
"""A word is looked for so far from where it was noted: text comes a little before its sound, or after it."""


class Said(NamedTuple):
    """A text, and the second at which it began to be heard (or was noted, where nothing better is known)."""

    at: float
    text: str


class Mark(NamedTuple):
    """Something that happened `at` a second: an event's name, and what else was noted of it."""

    at: float
    what: str
    more: str = ""


@dataclass(frozen=True)
class Recorded:
    """`agent` and `user` [S], 24 kHz, the same time; `said` by the agent, `heard` of the user.

    `codes` [8, T] are the agent's, where they are known. `steps` is None where none were recorded. `lacks` says in
    words what a report would show and this recording does not hold, `doubts` what may be wrong with it.
    """

    name: str
    source: str
    agent: np.ndarray = field(repr=False)
    user: np.ndarray = field(repr=False)
    said: Sequence[Said] = ()
    heard: Sequence[Said] = ()
    marks: Sequence[Mark] = ()
    steps: StepRecord | None = field(default=None, repr=False)
    codes: np.ndarray | None = field(default=None, repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)
    lacks: Sequence[str] = ()
    doubts: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.agent) / SAMPLE_RATE

    @property
    def text(self) -> str:
        """What the agent said."""
        return "".join(one.text for one in self.said).strip()


def of_one_length(agent: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both [S], the shorter one with silence after it."""
    n = max(len(agent), len(user))
    return np.pad(agent, (0, n - len(agent))), np.pad(user, (0, n - len(user)))


def looks_swapped(recorded: Recorded) -> bool:
    """Whether the agent's words were noted where the user's channel sounds and the agent's does not.

    Only what was noted while one of them alone sounds is counted: of five such words or more, four in five.
    """
    agent, user = (_loud(side) for side in (recorded.agent, recorded.user))
    votes = []
    for one in recorded.said:
        if not one.text.strip():
            continue
        first, last = (max(0, round((one.at + reach) * 10)) for reach in (-MATCH_SECONDS, MATCH_SECONDS))
        sounds = bool(agent[first : last + 1].any()), bool(user[first : last + 1].any())
        if sounds[0] is not sounds[1]:
            votes.append(sounds[1])
    return len(votes) >= 5 and sum(votes) >= 0.8 * len(votes)


def first_sound(pcm: np.ndarray) -> float:
    """The second, to a tenth, at which [S] begins to sound; 0 if it never does."""
    return float(np.argmax(_loud(pcm))) / 10


def _loud(pcm: np.ndarray) -> np.ndarray:
    """For every tenth of a second, whether it sounds above the background."""
    chunks = list(LevelDetector().push(pcm))
    loud = np.zeros(len(pcm) * 10 // SAMPLE_RATE + 1, bool)
    for i, probability in enumerate(chunks):
        loud[min(len(loud) - 1, i * 32 // 100)] |= probability >= 0.5
    return loud


def words(said: Sequence[Said]) -> list[Said]:
    """Pieces of text joined to words, each where its first piece is."""
    found: list[Said] = []
    fresh = True
    for at, text in said:
        for i, part in enumerate(text.split(" ")):
            fresh = fresh or i > 0
            if not part.strip():
                continue
            if fresh or not found:
                found.append(Said(at, part.strip()))
            else:
                found[-1] = found[-1]._replace(text=found[-1].text + part.strip())
            fresh = False
        fresh = text.endswith(" ") if text else fresh
    return found
