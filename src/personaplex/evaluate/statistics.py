"""Shares with their intervals, word errors, and words found in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np

Z95 = 1.959964
"""Standard deviations that hold 95 % of a normal distribution."""

FEWEST = 6
"""Of fewer values the least and the largest hold the median less than 95 times of 100."""


@dataclass(frozen=True)
class Share:
    """`hits` of `n`, with the Wilson interval: honest also at 0 % and 100 %."""

    hits: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Self:
        """Count outcomes."""
        counted = [bool(outcome) for outcome in outcomes]
        return cls(sum(counted), len(counted))

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies, 95 times of 100."""
        return self.within(Z95)

    def within(self, z: float) -> tuple[float, float]:
        """The same for another probability, of `z` standard deviations."""
        if not self.n:
            return 0.0, 1.0
        spread = z**2 / self.n
        centre = (self.value + spread / 2) / (1 + spread)
        half = z / (1 + spread) * math.sqrt(self.value * (1 - self.value) / self.n + spread / (4 * self.n))
        return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(fell: int, rose: int) -> float:
    """Two-sided exact probability of so uneven a change among items that changed."""
    n, fewer = fell + rose, min(fell, rose)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n))


def fisher(one: Share, other: Share) -> float:
    """Two-sided exact probability that two shares of one truth are as unlike as these; 1 of nothing.

    The sum over all tables with the same totals that are no likelier than this one (R. A. Fisher, "Statistical Methods
    for Research Workers", 1934, section 21.02). Written here because scipy is only in an extra.
    """
    hits, n = one.hits + other.hits, one.n + other.n

    def log_ways(k: int) -> float:
        return _log_choices(one.n, k) + _log_choices(other.n, hits - k)

    everything, observed = _log_choices(n, hits), log_ways(one.hits)
    found = (log_ways(k) for k in range(max(0, hits - other.n), min(hits, one.n) + 1))
    return min(1.0, math.fsum(math.exp(ways - everything) for ways in found if ways <= observed + 1e-7))


def _log_choices(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def word_errors(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest substitutions, insertions and deletions that turn `heard` into `wanted`."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


@dataclass(frozen=True)
class ErrorRate:
    """Word errors over words wanted, with an interval over whole utterances (errors come in clusters).

    What is heard where nothing is wanted is wrong too: it adds to the errors and to no words.
    """

    errors: tuple[int, ...]
    words: tuple[int, ...]

    @classmethod
    def over(cls, pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Self:
        """From pairs of wanted and heard words."""
        counted = [(word_errors(wanted, heard), len(wanted)) for wanted, heard in pairs]
        return cls(tuple(e for e, _ in counted), tuple(n for _, n in counted))

    @property
    def n(self) -> int:
        """Utterances."""
        return len(self.words)

    @property
    def value(self) -> float:
        """The rate; NaN where no words were wanted. Above 1 when much was heard that was not said."""
        return sum(self.errors) / sum(self.words) if sum(self.words) else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the ratio, from the spread of its residuals over utterances.

        Without an error there is no spread, and yet the true rate need not be 0: then it is the exact bound on the
        share of utterances with errors, 1 - 0.05^(1/n), nearly 3/n (J. A. Hanley and A. Lippman-Hand, "If nothing goes
        wrong, is everything all right?", JAMA 249 (1983), 1743-1745), as if every word of those were wrong.
        """
        total = sum(self.words)
        if self.n < 2 or not total:
            return 0.0, 1.0
        if not sum(self.errors):
            return 0.0, 1 - 0.05 ** (1 / self.n)
        squares = sum((e - self.value * w) ** 2 for e, w in zip(self.errors, self.words, strict=True))
        half = Z95 * math.sqrt(squares * self.n / (self.n - 1)) / total
        return max(0.0, self.value - half), self.value + half


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share `q` of `values` lies, between neighbours linearly; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low, high = math.floor(at), math.ceil(at)
    # An infinite neighbour (never stopped) must not turn into NaN when its weight is nought.
    return ordered[low] if low == high else ordered[low] + (at - low) * (ordered[high] - ordered[low])


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median, from order statistics; no shape of the distribution is assumed.

    NaN of fewer than `FEWEST` values.
    """
    n = len(values)
    if n < FEWEST:
        return math.nan, math.nan
    ordered, reach = sorted(values), Z95 * math.sqrt(n) / 2
    return ordered[max(0, math.floor(n / 2 - reach))], ordered[min(n - 1, math.ceil(n / 2 + reach))]


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean, by the bootstrap, the same for a seed; NaN of fewer than `FEWEST` values.

    Percentiles of the means of 4,000 resamples, moved outwards as far as Student's distribution lies beyond the normal
    one (Hesterberg 2015, "What teachers should know about the bootstrap", expanded percentile interval): plain ones are
    too narrow for few values. No shape is assumed, and what is bounded keeps its bounds: an interval never reaches
    beyond the values, as Student's does. Of six normal values it holds the mean 93 times of 100.
    """
    return pooled_mean_interval([[value] for value in values], seed)


def pooled_mean_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The same of the mean of all values of all groups, whose values are not independent of each other.

    Whole groups are resampled, with all that is in them (the cluster bootstrap: A. C. Davison and D. V. Hinkley,
    "Bootstrap Methods and Their Application", 1997, section 3.8). NaN of fewer than `FEWEST` groups that hold a value.
    """
    held = [group for group in groups if len(group)]
    n = len(held)
    if n < FEWEST:
        return math.nan, math.nan
    sums = np.array([np.sum(group, dtype=np.float64) for group in held])
    counts = np.array([len(group) for group in held], np.float64)
    rng = np.random.default_rng(seed)
    # In parts: all resamples of ten thousand values at once would be 320 MB.
    drawn = (rng.integers(n, size=(_RESAMPLES // 40, n)) for _ in range(40))
    parts = [sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1) for chosen in drawn]
    tail = NormalDist().cdf(-_student(n - 1) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    return float(low), float(high)


def is_above(values: Sequence[float], chance: float) -> bool | None:
    """Whether the mean of `values`, but for NaN, lies above `chance` with its whole interval.

    None of fewer than `FEWEST`, of which nothing can be told: chance puts five on one side more than five times of 100
    (the sign test).
    """
    known = [value for value in values if not math.isnan(value)]
    low = mean_interval(known)[0]
    return None if math.isnan(low) else low > chance


_RESAMPLES = 4000


def _student(freedom: int) -> float:
    """97.5 % quantile of Student's distribution with 5 degrees of freedom or more, within 0.03: Fisher's expansion."""
    z = Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def jackknife_interval(value: float, without_one: Sequence[float]) -> tuple[float, float]:
    """95 % interval of any statistic, from its values with one item left out each (Quenouille, Tukey; normal).

    For entropies and counts of kinds, which a bootstrap makes smaller: its resamples hold fewer kinds than the sample.
    NaN of fewer than eight items: two that are equally unlike would have no spread.
    """
    n = len(without_one)
    if n < 8:
        return math.nan, math.nan
    left = np.asarray(without_one, np.float64)
    half = Z95 * math.sqrt((n - 1) / n * float(np.square(left - left.mean()).sum()))
    return value - half, value + half


def words_of(text: str) -> list[str]:
    """Words as a recogniser knows them: lower case, letters and apostrophes."""
    letters = "".join(c if c.isalpha() or c == "'" else " " for c in text.lower())
    return [word for word in letters.split() if word.strip("'")]
