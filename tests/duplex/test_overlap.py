"""Overlaps on hand-made spans, with answers known from the benchmark's `get_timing.py`."""

from __future__ import annotations

from personaplex.cascade.engine import TimedWord
from personaplex.evaluate.duplex.overlap import before_and_after, overlaps, words_per_minute
from personaplex.evaluate.span import Span

USER = [Span(0.0, 2.0), Span(6.0, 8.0)]
EVENT = Span(6.0, 8.0)


def test_an_agent_that_gives_way_and_answers() -> None:
    found = overlaps(USER, [Span(2.4, 6.5), Span(8.3, 10.0)], EVENT)
    assert found.stops == ((6.0, 6.5),)
    assert found.answers == ((2.0, 2.4), (8.0, 8.3))
    assert (found.spoke, found.silent, found.answered) == (True, 6.5, 8.3)


def test_an_agent_that_talks_on_never_falls_silent() -> None:
    found = overlaps(USER, [Span(2.4, 9.0)], EVENT)
    assert found.stops == ((6.0, 8.0),)
    assert found.answers == ((2.0, 2.4),)
    assert (found.spoke, found.silent, found.answered) == (True, None, None)


def test_an_agent_that_begins_in_the_event_did_not_wait_for_its_end() -> None:
    found = overlaps(USER, [Span(7.0, 9.0)], EVENT)
    assert (found.stops, found.spoke, found.silent, found.answered) == (((7.0, 8.0),), False, None, None)


def test_an_agent_that_says_nothing() -> None:
    found = overlaps(USER, [], EVENT)
    assert (found.stops, found.answers, found.spoke, found.silent, found.answered) == ((), (), False, None, None)


def test_pauses_of_half_a_second_are_within_speech() -> None:
    agent = [Span(2.4, 5.8), Span(6.3, 6.6)]
    assert overlaps(USER, agent, EVENT).spoke, "the gap is 0.5 s"
    assert not overlaps(USER, [Span(2.4, 5.7), Span(6.3, 6.6)], EVENT).spoke
    user = [Span(0.0, 1.0), Span(1.6, 2.0), *USER[1:]]
    assert overlaps(user, [Span(2.4, 3.0)], EVENT).answers == ((2.0, 2.4),), "the user's gap is 0.6 s"


def test_two_ends_of_the_user_before_one_answer_are_one_latency_the_shorter() -> None:
    assert overlaps([Span(0, 1), Span(2, 3)], [Span(3.5, 4.0)], Span(2, 3)).answers == ((3.0, 3.5),)


def test_an_answer_that_begins_in_the_users_speech_is_no_answer() -> None:
    found = overlaps([Span(0, 2)], [Span(1.5, 3.0)], Span(0, 2))
    assert found.answers == ()
    assert found.stops == ((1.5, 2.0),)


def test_words_are_parted_where_the_event_ends() -> None:
    words = [TimedWord("a", 1.0, 1.5), TimedWord("b", 1.8, 2.2), TimedWord("c", 3.0, 3.5)]
    before, after = before_and_after(words, 2.0)
    assert [word.text for word in before] == ["a"]
    assert [word.text for word in after] == ["b", "c"], "the word that it falls into comes after"
    assert before_and_after(words, 2.5)[1] == words[2:]
    assert before_and_after(words, 9.0) == (words, [])
    assert words_per_minute(words) == 3 / 2.5 * 60
    assert words_per_minute([]) == 0
