"""Spans of speech from hand-made probabilities, and from speech whose words are known."""

from __future__ import annotations

import numpy as np
import pytest

from personaplex.evaluate.duplex.speech_spans import (
    in_tenths,
    is_speaking,
    merged,
    spans_of,
    speech_spans,
    within,
)
from personaplex.evaluate.span import Span
from personaplex.speech import AGENTS, say
from personaplex.turns import CHUNK_SECONDS
from personaplex.units import SAMPLE_RATE

YES, MAYBE, NO = 0.9, 0.4, 0.1
SECOND = round(1 / CHUNK_SECONDS)


def rounded(spans: list[Span]) -> list[tuple[float, float]]:
    return [(round(span.start, 3), round(span.end, 3)) for span in spans]


def test_a_span_has_margins_and_ends_when_silence_began() -> None:
    found = spans_of([NO] * 10 + [YES] * 20 + [NO] * 10, 40 * CHUNK_SECONDS)
    assert rounded(found) == [(0.29, 0.99)]


def test_in_doubt_it_goes_on_as_it_was() -> None:
    assert spans_of([MAYBE] * 40, 40 * CHUNK_SECONDS) == []
    found = spans_of([YES] + [MAYBE] * 20 + [NO] * 10, 31 * CHUNK_SECONDS)
    assert rounded(found) == [(0.0, round(21 * CHUNK_SECONDS + 0.03, 3))]


def test_what_lasts_a_quarter_of_a_second_or_less_is_no_speech() -> None:
    assert spans_of([NO] * 5 + [YES] * 7 + [NO] * 10, 22 * CHUNK_SECONDS) == []
    assert len(spans_of([NO] * 5 + [YES] * 8 + [NO] * 10, 23 * CHUNK_SECONDS)) == 1


def test_a_gap_of_less_than_a_tenth_is_none() -> None:
    assert len(spans_of([YES] * 10 + [NO] * 3 + [YES] * 10, 23 * CHUNK_SECONDS)) == 1
    two = spans_of([YES] * 10 + [NO] * 5 + [YES] * 10, 25 * CHUNK_SECONDS)
    assert rounded(two) == [(0.0, 0.35), (0.45, 0.8)]


def test_speech_that_ends_with_the_recording_ends_with_it() -> None:
    assert rounded(spans_of([NO] * 10 + [YES] * 20, 30 * CHUNK_SECONDS - 0.01)) == [(0.29, 0.95)]


def test_seconds_are_given_in_tenths() -> None:
    assert in_tenths([Span(0.27, 0.86), Span(1.04, 1.98)], 1.96) == [(0.3, 0.9), (1.0, 1.96)]


def test_neighbours_are_merged_across_a_gap_that_is_short_enough() -> None:
    spans = [Span(3.0, 4.0), Span(0.0, 1.0), Span(1.5, 2.0)]
    assert merged(spans, 0.5) == [(0.0, 2.0), (3.0, 4.0)]
    assert merged(spans, 0.4) == [(0.0, 1.0), (1.5, 2.0), (3.0, 4.0)]
    assert is_speaking(spans, 3.0) and not is_speaking(spans, 4.0)


@pytest.mark.parametrize("span", [Span(-1, 2), Span(3, 2), Span(1, 11), Span(float("nan"), 2), Span(1, float("inf"))])
def test_a_span_that_cannot_be(span: Span) -> None:
    assert not within(span, 10.0)
    assert within(Span(1, 2), 10.0)


def test_silero_finds_the_words_that_were_said_and_nothing_in_silence_or_noise() -> None:
    said = say(AGENTS["NATF2"], "what time do you open on sunday please")
    pcm = np.concatenate([np.zeros(SAMPLE_RATE, np.float32), said.pcm, np.zeros(SAMPLE_RATE, np.float32)])
    spans = speech_spans(pcm)
    first, last = 1 + said.words[0].start / SAMPLE_RATE, 1 + said.words[-1].end / SAMPLE_RATE
    assert spans[0].start == pytest.approx(first, abs=0.1)
    assert spans[-1].end == pytest.approx(last, abs=0.15)
    assert speech_spans(np.zeros(SAMPLE_RATE, np.float32)) == []
    assert speech_spans(np.random.default_rng(0).normal(0, 0.05, 2 * SAMPLE_RATE).astype(np.float32)) == []


def test_a_recording_of_any_length_has_as_many_probabilities_as_chunks() -> None:
    """The last samples are heard too, although the detector's resampler holds some back."""

    class Counting:
        n = 0

        def push(self, pcm: np.ndarray) -> list[float]:
            self.n += len(pcm)
            return [YES] * (len(pcm) // round(CHUNK_SECONDS * SAMPLE_RATE))

    for n_samples in (SAMPLE_RATE, SAMPLE_RATE + 1, SAMPLE_RATE - 1):
        counting = Counting()
        spans = speech_spans(np.zeros(n_samples, np.float32), counting)  # type: ignore[arg-type]
        assert spans == [(0.0, n_samples / SAMPLE_RATE)]
        assert counting.n >= n_samples + round(CHUNK_SECONDS * SAMPLE_RATE)
