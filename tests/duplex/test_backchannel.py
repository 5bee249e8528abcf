"""Backchannels on hand-made spans and words, with answers known from the benchmark's script."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest

from personaplex.cascade.engine import TimedWord
from personaplex.evaluate.duplex.backchannel import divergence, histogram, listen, words_in
from personaplex.evaluate.span import Span

NOD = Span(2.0, 2.5)


def words(*times: tuple[float, float]) -> list[TimedWord]:
    return [TimedWord("w", start, end) for start, end in times]


def test_a_nod_is_a_backchannel_and_no_takeover() -> None:
    heard = listen([NOD], words((2.0, 2.2), (2.2, 2.5)), 10.0)
    assert not heard.takeover
    assert (heard.spans, heard.frequency, heard.frequency_2025) == ((NOD,), 0.1, 0.1)


def test_silence_is_neither() -> None:
    heard = listen([], [], 10.0)
    assert (heard.takeover, heard.frequency) == (False, 0.0)
    assert divergence(heard, [1.0, 1.0]) == 1.0


@pytest.mark.parametrize(
    "span, said",
    [
        (Span(2.0, 2.9), words((2.0, 2.2), (2.2, 2.4), (2.4, 2.6))),  # three words
        (Span(2.0, 3.0), words()),  # a second
        (Span(2.0, 5.5), words()),  # more than three
    ],
)
def test_longer_or_with_more_words_it_is_a_turn(span: Span, said: list[TimedWord]) -> None:
    assert listen([span], said, 10.0).takeover


def test_seconds_are_compared_as_the_script_compares_them() -> None:
    assert Span(1.3, 2.3).seconds < 1.0  # in binary
    assert not listen([Span(1.3, 2.3)], [], 10.0).takeover


def test_the_last_span_decides_and_short_turns_count_as_backchannels() -> None:
    turn = Span(1.0, 3.5)
    heard = listen([NOD, turn, Span(6.0, 6.3)], [], 10.0)
    assert not heard.takeover
    assert (heard.frequency, heard.frequency_2025) == (0.3, 0.1)
    assert listen([NOD, turn], [], 10.0).takeover
    assert listen([NOD, turn], [], 10.0).frequency_2025 == 0.0


def test_nothing_is_looked_at_after_a_span_of_more_than_three_seconds() -> None:
    heard = listen([NOD, Span(3.0, 6.1), Span(8.0, 8.3)], [], 10.0)
    assert heard.takeover
    assert heard.spans == (NOD,)


def test_a_word_is_in_a_span_that_it_touches_from_behind_but_not_from_before() -> None:
    inside, across, over = (2.1, 2.3), (1.8, 2.1), (1.0, 3.0)
    assert len(words_in(NOD, words(inside, across, over, (2.5, 2.8)))) == 4
    assert words_in(NOD, words((1.5, 2.0), (2.51, 2.8))) == []


def test_the_histogram_has_a_bin_for_each_fifth_of_a_second_that_a_span_touches() -> None:
    bins = histogram([Span(0.5, 0.9)], 1.3)
    assert len(bins) == 7
    assert np.round(bins, 6).tolist() == [0, 0, 0.333333, 0.333333, 0.333333, 0, 0]
    assert bins.min() > 0 and bins.sum() == pytest.approx(1)


def test_divergence_is_0_in_the_same_places_and_the_root_of_ln_2_in_others() -> None:
    heard = listen([Span(0.5, 0.9)], [], 1.3)
    assert divergence(heard, [0, 0, 1, 1, 1, 0, 0]) == pytest.approx(0, abs=1e-4)
    assert divergence(heard, [0, 0, 2, 2, 2, 0, 0]) == pytest.approx(0, abs=1e-4), "the scale does not matter"
    assert divergence(heard, [1, 1, 0, 0, 0, 1, 1]) == pytest.approx(math.sqrt(math.log(2)), abs=1e-4)
    half = divergence(heard, [1, 1, 1, 1, 1, 0, 0])
    assert 0.2 < half < 0.6


def test_divergence_is_scipys_after_its_interpolation() -> None:
    distance = importlib.import_module("scipy.spatial.distance")
    interpolate = importlib.import_module("scipy.interpolate")
    rng = np.random.default_rng(0)
    for n_human in (4, 40, 7):
        human = rng.random(n_human).tolist()
        heard = listen([Span(0.5, 0.9), Span(3.0, 3.3)], [], 8.0)
        there = interpolate.interp1d(np.linspace(0, 1, n_human), human)(np.linspace(0, 1, 41))
        wanted = distance.jensenshannon(histogram(heard.spans, 8.0), there)
        assert divergence(heard, human) == pytest.approx(wanted, rel=1e-9)
