"""Did the agent take the turn, and how soon: pause handling, smooth turn-taking and interruption of v1.0."""

from __future__ import annotations

from collections.abc import Sequence

from personaplex.cascade.engine import TimedWord

TURN_SECONDS = 1.0
"""Words that span as much are a turn, however few."""

MOST_WORDS = 3
"""More words are a turn, however quickly said."""


def takes_turn(words: Sequence[TimedWord]) -> bool:
    """Whether the agent's words are a turn. None are not; neither are up to three that span less than a second."""
    if not words:
        return False
    return words[-1].end - words[0].start >= TURN_SECONDS or len(words) > MOST_WORDS


def latency(words: Sequence[TimedWord], user_end: float) -> float | None:
    """Seconds from the user's end to the agent's first word, below 0 for one that came too early; None for no turn.

    The benchmark clamps what is below 0 to 0 before it averages: see `clamped`.
    """
    return words[0].start - user_end if takes_turn(words) else None


def clamped(seconds: float) -> float:
    """A latency as the benchmark averages it: an agent that talks over the user counts as one that answers at once."""
    return max(0.0, seconds)
