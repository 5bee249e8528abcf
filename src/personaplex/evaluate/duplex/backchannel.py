"""Does the agent say "mm-hm" where people do: backchannels of v1.0, and the turns taken instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personaplex.cascade.engine import TimedWord
from personaplex.evaluate.span import Span

LONGEST_SECONDS = 3.0
"""A span beyond it is a turn, and nothing after it is looked at."""

BACKCHANNEL_SECONDS = 1.0
MOST_WORDS = 2
BIN_SECONDS = 0.2
EPSILON = 1e-10
NO_BACKCHANNEL = 1.0
"""The divergence of a clip without any: beyond the largest that the formula can give, which is 0.833."""


@dataclass(frozen=True)
class Listener:
    """How the agent listened to one clip of `seconds`.

    `takeover`: the last span looked at is a turn. `spans`: those that count for frequency and divergence, turns of up
    to three seconds among them. `since_turn`: those after the last turn, which is what the scripts of 2025 counted.
    """

    takeover: bool
    spans: tuple[Span, ...]
    since_turn: tuple[Span, ...]
    seconds: float

    @property
    def frequency(self) -> float:
        """Backchannels a second."""
        return len(self.spans) / self.seconds

    @property
    def frequency_2025(self) -> float:
        """The same as the scripts of 2025 counted."""
        return len(self.since_turn) / self.seconds


def listen(spans: Sequence[Span], words: Sequence[TimedWord], seconds: float) -> Listener:
    """Judge the agent's speech `spans`, in tenths of a second, by the `words` in each."""
    takeover = False
    counted: list[Span] = []
    since: list[Span] = []
    for span in spans:
        if span.seconds > LONGEST_SECONDS:
            takeover = True
            break
        takeover = span.seconds >= BACKCHANNEL_SECONDS or len(words_in(span, words)) > MOST_WORDS
        counted.append(span)
        since = [] if takeover else [*since, span]
    return Listener(takeover, tuple(counted), tuple(since), seconds)


def words_in(span: Span, words: Sequence[TimedWord]) -> list[TimedWord]:
    """Words of which any part lies in a span, its ends included as the scripts include them."""
    return [
        word
        for word in words
        if (word.start >= span.start and word.end <= span.end)
        or (word.start <= span.end < word.end)
        or (word.start <= span.start < word.end)
    ]


def divergence(listener: Listener, human: Sequence[float]) -> float:
    """How far the agent's backchannels lie in time from people's; 0 for the same places, `NO_BACKCHANNEL` for none.

    `human`: how likely a backchannel is in each of any number of equal parts of the clip, to any scale. The benchmark
    calls it JSD; it is the square root of the Jensen-Shannon divergence in nats (SciPy's `jensenshannon`).
    """
    if not listener.spans:
        return NO_BACKCHANNEL
    said = histogram(listener.spans, listener.seconds)
    there = np.interp(np.linspace(0, 1, len(said)), np.linspace(0, 1, len(human)), human)
    return _jensen_shannon(said, there)


def histogram(spans: Sequence[Span], seconds: float) -> np.ndarray:
    """Spans over bins of 0.2 s; the bin in which a span ends counts too. Sums to 1, no bin is 0."""
    bins = np.zeros(int(seconds / BIN_SECONDS) + 1)
    for span in spans:
        bins[int(span.start / BIN_SECONDS) : int(span.end / BIN_SECONDS) + 1] += 1
    bins += EPSILON
    return np.asarray(bins / bins.sum())


def _jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Five lines of arithmetic, so that the program need not load SciPy; a test holds them against it."""
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    halves = [float(np.sum(side[side > 0] * np.log(side[side > 0] / middle[side > 0]))) for side in (p, q)]
    return float(np.sqrt(max(0.0, sum(halves)) / 2))
