"""Who spoke when, from the sound of both sides: spans of speech, turns, what passed between them, and overlaps.

A span is speech without a silence of `PAUSE_SECONDS`. One that lies wholly inside a span of the other's is said
within their turn (a nod, or a try that was not heard) and is no turn of its own. Of the rest, those of one side in a
row are a turn. Nothing here knows what was meant: `eval duplex` measures that on recordings where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from personaplex.evaluate.span import Span
from personaplex.turns import CHUNK_SECONDS, UserTurn, VoiceActivity
from personaplex.units import SAMPLE_RATE
from personaplex.vad import Detector, LevelDetector, new_detector

SPEECH_SECONDS, PAUSE_SECONDS = 0.1, 0.3
"""Speech that is counted lasts so long, and so much silence ends it."""

RULE = VoiceActivity(speech_seconds=SPEECH_SECONDS, silence_seconds=PAUSE_SECONDS)

Side: TypeAlias = Literal["user", "agent"]


class Turn(NamedTuple):
    """Spans of one side in a row: from the first one's start to the last one's end."""

    side: Side
    start: float
    end: float


class Overlap(NamedTuple):
    """Both speak from `start` to `end`; `second` is who began later.

    `outlasts`: the second goes on when the first has ended: an interruption by the user, an early start of the
    agent's. Otherwise it was said within the other's speech.
    """

    start: float
    end: float
    second: Side
    outlasts: bool

    @property
    def what(self) -> str:
        """In words."""
        if not self.outlasts:
            first = "user" if self.second == "agent" else "agent"
            return f"the {self.second} speaks within the {first}'s speech"
        return "the user interrupts" if self.second == "user" else "the agent begins early"


class Answer(NamedTuple):
    """The agent's turn after one of the user's: `latency` in seconds, negative when it began before the user ended."""

    at: float
    latency: float


@dataclass(frozen=True)
class Speech:
    """What was found in one conversation of `seconds`."""

    seconds: float
    user: Sequence[Span]
    agent: Sequence[Span]
    turns: Sequence[Turn]
    answers: Sequence[Answer]
    overlaps: Sequence[Overlap]
    unanswered: int

    @property
    def within(self) -> list[Turn]:
        """What was said wholly within the other's speech, and is no turn of its own, in order."""
        mine = [Turn("user", *span) for span in self.user if _is_within(span, self.agent)]
        return sorted(
            [*mine, *(Turn("agent", *span) for span in self.agent if _is_within(span, self.user))], key=_start
        )

    @property
    def stops(self) -> list[float]:
        """Seconds from the start of each interruption by the user until the agent is silent."""
        return [overlap.end - overlap.start for overlap in self.overlaps if overlap.what == "the user interrupts"]

    @property
    def overlapped(self) -> float:
        """The share of speech, in time, in which both speak; NaN where nobody does."""
        both = sum(overlap.end - overlap.start for overlap in self.overlaps)
        either = sum(span.seconds for span in (*self.user, *self.agent)) - both
        return both / either if either else float("nan")


def find_speech(
    user: np.ndarray,
    agent: np.ndarray,
    hears_user: Callable[[], Detector] = new_detector,
    hears_agent: Callable[[], Detector] = LevelDetector,
) -> Speech:
    """Both sides, [S] each of the same time at 24 kHz.

    The user is told from noise by Silero's detector where it is there; the agent, whose sound holds nothing but
    speech, by its level above the background.
    """
    spoken, answered = spans(user, hears_user()), spans(agent, hears_agent())
    found = turns(spoken, answered)
    replies = [
        Answer(after.start, after.start - before.end) for before, after in pairwise(found) if after.side == "agent"
    ]
    n_asked = sum(turn.side == "user" for turn in found)
    seconds = max(len(user), len(agent)) / SAMPLE_RATE
    return Speech(seconds, spoken, answered, found, replies, overlaps(spoken, answered), n_asked - len(replies))


def spans(pcm: np.ndarray, detector: Detector, rule: VoiceActivity = RULE) -> list[Span]:
    """Spans of speech in `pcm` [S] at 24 kHz, each from the chunk that began it to the one before the silence."""
    found: list[Span] = []
    turn, changes_at, begin, at = UserTurn(), 0, 0.0, 0
    for at, probability in enumerate(detector.push(pcm), 1):
        before, turn = turn, turn.after(probability, rule)
        flips = before.speaking is not turn.speaking
        if before.run == 0 and (turn.run or flips):
            changes_at = at - 1
        if flips and turn.speaking:
            begin = changes_at * CHUNK_SECONDS
        elif flips:
            found.append(Span(begin, changes_at * CHUNK_SECONDS))
    if turn.speaking:
        found.append(Span(begin, (changes_at if turn.run else at) * CHUNK_SECONDS))
    return found


def turns(user: Sequence[Span], agent: Sequence[Span]) -> list[Turn]:
    """Turns in the order in which they begin; at the same moment the user's comes first."""
    found: list[Turn] = []
    mine = [("user", span) for span in user if not _is_within(span, agent)]
    theirs = [("agent", span) for span in agent if not _is_within(span, user)]
    for side, span in sorted([*mine, *theirs], key=lambda one: (one[1].start, one[0] == "agent")):
        if found and found[-1].side == side:
            found[-1] = found[-1]._replace(end=span.end)
        else:
            found.append(Turn("user" if side == "user" else "agent", *span))
    return found


def _start(turn: Turn) -> float:
    return turn.start


def _is_within(span: Span, others: Sequence[Span]) -> bool:
    """Whether it lies in one of `others`; of two that are the same neither does."""
    return any(other.start <= span.start and span.end <= other.end and other != span for other in others)


def overlaps(user: Sequence[Span], agent: Sequence[Span]) -> list[Overlap]:
    """Every moment in which both speak, in order."""
    found = []
    for u in user:
        for a in agent:
            begin, end = max(u.start, a.start), min(u.end, a.end)
            if begin < end:
                second: Side = "agent" if u.start <= a.start else "user"
                outlasts = a.end > u.end if second == "agent" else u.end > a.end
                found.append(Overlap(begin, end, second, outlasts))
    return sorted(found)
