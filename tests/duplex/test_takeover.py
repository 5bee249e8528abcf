"""Takeovers and latencies on hand-made words, with answers known from the benchmark's definitions."""

from __future__ import annotations

import pytest

from personaplex.cascade.engine import TimedWord
from personaplex.evaluate.duplex.takeover import clamped, latency, takes_turn


def words(*times: tuple[float, float]) -> list[TimedWord]:
    return [TimedWord(f"w{i}", start, end) for i, (start, end) in enumerate(times)]


NONE = words()
THREE_IN_LESS_THAN_A_SECOND = words((2.0, 2.2), (2.3, 2.5), (2.6, 2.9))
THREE_IN_A_SECOND = words((2.0, 2.2), (2.3, 2.5), (2.6, 3.0))
FOUR_AT_ONCE = words((2.0, 2.1), (2.1, 2.2), (2.2, 2.3), (2.3, 2.4))
ONE_LONG = words((2.0, 3.2))
TWO_NODS_FAR_APART = words((2.0, 2.3), (7.0, 7.3))


@pytest.mark.parametrize("said", [NONE, THREE_IN_LESS_THAN_A_SECOND, words((5.0, 5.4))])
def test_silence_and_up_to_three_quick_words_are_no_takeover(said: list[TimedWord]) -> None:
    assert not takes_turn(said)
    assert latency(said, 1.0) is None


@pytest.mark.parametrize("said", [THREE_IN_A_SECOND, FOUR_AT_ONCE, ONE_LONG, TWO_NODS_FAR_APART])
def test_a_second_or_a_fourth_word_is_a_takeover(said: list[TimedWord]) -> None:
    """Two nods far apart too: the benchmark looks at the first word's beginning and the last one's end."""
    assert takes_turn(said)
    assert latency(said, 1.5) == 0.5


def test_an_early_start_is_hidden_by_clamping_and_told_without() -> None:
    early = latency(FOUR_AT_ONCE, 2.4)
    assert early is not None and early == pytest.approx(-0.4)
    assert clamped(early) == 0.0
    assert clamped(0.3) == 0.3
