"""Both talk at once: the timing of v1.5, which needs no judge.

Two figures are the benchmark's (every overlap of the clip; every answer), two are those of the event that the clip is
about, and two say in what share of clips there was anything to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from personaplex.cascade.engine import TimedWord
from personaplex.evaluate.duplex.speech_spans import merged
from personaplex.evaluate.span import Span

USER_GAP, AGENT_GAP = 0.6, 0.5
"""Speech of one side with no more silence between is one stretch."""


@dataclass(frozen=True)
class Overlaps:
    """Seconds, all of them from the beginning of the clip.

    `stops`: each time both spoke, until one stopped; their lengths are the benchmark's stop latency. `answers`: from
    the end of each user's stretch to the agent's next start; their lengths are its response latency. The rest is of the
    `event`, in which the second voice is heard: whether the agent `spoke` when it began, when it fell `silent` (None if
    not before the event's end), and when it `answered` after it (None if never).
    """

    stops: tuple[Span, ...]
    answers: tuple[Span, ...]
    event: Span
    spoke: bool
    silent: float | None
    answered: float | None


def overlaps(user: Sequence[Span], agent: Sequence[Span], event: Span) -> Overlaps:
    """From the speech of both sides as the detector found it."""
    users, agents = merged(user, USER_GAP), merged(agent, AGENT_GAP)
    talking = next((span for span in agents if span.start <= event.start < span.end), None)
    silent = talking.end if talking is not None and talking.end < event.end else None
    answered = next((span.start for span in agents if span.start > event.end), None)
    stops, answers = stop_intervals(users, agents), response_intervals(users, agents)
    return Overlaps(stops, answers, event, talking is not None, silent, answered)


def stop_intervals(user: Sequence[Span], agent: Sequence[Span]) -> tuple[Span, ...]:
    """Each time both speak; of those that end in the same millisecond the shortest."""
    both = [
        Span(max(one.start, other.start), min(one.end, other.end))
        for one in user
        for other in agent
        if min(one.end, other.end) > max(one.start, other.start)
    ]
    ends = groupby(sorted(both, key=lambda span: (span.end, span.start)), key=lambda span: round(1000 * span.end))
    return tuple(_rounded(min(spans, key=lambda span: span.seconds)) for _, spans in ends)


def response_intervals(user: Sequence[Span], agent: Sequence[Span]) -> tuple[Span, ...]:
    """From each end of the user to the agent's next start; of those with the same start the shortest."""
    latest: dict[float, float] = {}
    for span in user:
        start = next((other.start for other in agent if other.start > span.end), None)
        if start is not None:
            latest[start] = max(span.end, latest.get(start, 0.0))
    return tuple(_rounded(Span(end, start)) for start, end in sorted(latest.items()))


def _rounded(span: Span) -> Span:
    return Span(round(span.start, 3), round(span.end, 3))


def words_per_minute(words: Sequence[TimedWord]) -> float:
    """How fast the agent speaks, pauses included; 0 without words that take time, and the benchmark averages it in."""
    if not words or words[-1].end <= words[0].start:
        return 0.0
    return 60 * len(words) / (words[-1].end - words[0].start)


def before_and_after(words: Sequence[TimedWord], event_end: float) -> tuple[list[TimedWord], list[TimedWord]]:
    """The agent's words up to the event's end and from then on, the one that it falls into among the latter."""
    split = next((word.start for word in words if event_end < word.end), event_end)
    return [word for word in words if word.end <= split], [word for word in words if word.end > split]
