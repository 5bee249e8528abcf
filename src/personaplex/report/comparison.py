"""Two results side by side: each row's difference, and whether it is more than noise.

How a row is compared follows from what is known of it:

- Paired, where the items of both have the same names and keep their `values` (`evaluate.result`), and the row is the
  mean or the median of them in both. Of single outcomes (true or false): McNemar's exact test, which counts the items
  that changed. Of anything else: a permutation test, which exchanges the two results item by item (all ways up to
  `EXACT` items, else `ROUNDS` at random, with a fixed seed) and looks at the row's difference; for a median of items
  with one number each at Wilcoxon's signed ranks, because exchanges hardly move a median. The interval, of the row's
  difference, resamples pairs (bootstrap).
- Shares otherwise: Fisher's exact test, whose probability is never too small, however few were counted. The interval
  is Newcombe's of a difference of two proportions (his method 10, of Wilson's intervals; R. G. Newcombe, Statistics in
  Medicine 17 (1998), 873-890): it is nearly right, not exact, so it may miss nought where the test says noise.
- Everything else by the intervals it came with, put together the same way (MOVER; G. Y. Zou and A. Donner, Statistics
  in Medicine 27 (2008), 1693-1702).

Of fewer than `FEWEST` in one of them nothing is said, whatever the row is.

Many rows at once find differences that are none: of twenty, one by chance. A difference is called more than noise only
if it holds after Holm's correction for the number of rows compared (S. Holm, Scandinavian Journal of Statistics 6
(1979), 65-70); one that would hold if it were the only one looked at is called uncertain.

What no test sees: a recogniser, a machine's load or a set of questions that favours one side does so in every item.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from personaplex.errors import UsageError
from personaplex.evaluate.result import Result
from personaplex.evaluate.row import Row
from personaplex.evaluate.statistics import FEWEST, Z95, Share, fisher, mcnemar

LEVEL = 0.05
ROUNDS, RESAMPLES, EXACT = 9999, 2000, 12
LEAST_COMMON = 0.5
"""Items are compared in pairs when at least this share of each result's has its like in the other."""

Verdict: TypeAlias = Literal["more than noise", "uncertain", "within noise", "cannot tell"]
Values: TypeAlias = "list[list[float]]"
Statistic: TypeAlias = "Callable[..., Any]"
NOTHING = (math.nan, math.nan)


@dataclass(frozen=True)
class Difference:
    """One row of both: `second` minus `first`, its 95 % interval, and the probability of as much by chance.

    `adjusted` is that probability after Holm's correction; None where nothing can be told. `better`: whether the
    second is, where the row has a direction.
    """

    what: str
    unit: str
    first: Row
    second: Row
    difference: float
    interval: tuple[float, float]
    probability: float | None
    method: str
    adjusted: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether it is more than noise."""
        if self.probability is None or self.adjusted is None:
            return "cannot tell"
        if self.adjusted < LEVEL:
            return "more than noise"
        return "uncertain" if self.probability < LEVEL else "within noise"

    @property
    def better(self) -> bool | None:
        """Whether the second is better; None where the row has no direction, or there is no difference."""
        # A result of an earlier version may not say it.
        direction = self.first.better or self.second.better
        if direction is None or not self.difference or math.isnan(self.difference):
            return None
        return (self.difference < 0) is (direction == "lower")

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "what": self.what,
            "unit": self.unit,
            "first": _plain(self.first.value),
            "second": _plain(self.second.value),
            "n": [self.first.n, self.second.n],
            "difference": _plain(self.difference),
            "interval": [_plain(end) for end in self.interval],
            "probability": self.probability,
            "adjusted": self.adjusted,
            "method": self.method,
            "verdict": self.verdict,
            "better": self.better,
        }


@dataclass(frozen=True)
class Comparison:
    """What differs between two results of one kind: rows, what only one has, and what they were measured with."""

    kind: str
    rows: Sequence[Difference]
    only_first: Sequence[str]
    only_second: Sequence[str]
    about: Mapping[str, tuple[Any, Any]]

    @property
    def n_compared(self) -> int:
        """Rows of which something can be told: what Holm's correction is for."""
        return sum(row.probability is not None for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "kind": "comparison",
            "of": self.kind,
            "compared": self.n_compared,
            "rows": [row.as_json() for row in self.rows],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "about": {name: list(pair) for name, pair in self.about.items()},
        }


def compare(first: Result, second: Result) -> Comparison:
    """Row by row. Raises UsageError for results of two kinds, and for two that have no row in common."""
    if first.kind != second.kind:
        raise UsageError(f"one is a result of {first.kind!r}, the other of {second.kind!r}: these say different things")
    mine, theirs = _by_name(first.rows), _by_name(second.rows)
    common = [name for name, row in mine.items() if name in theirs and theirs[name].unit == row.unit]
    if not common:
        raise UsageError("the two results have no row in common; were they measured on the same things?")
    found = [_difference(name, mine[name], theirs[name], first, second) for name in common]
    about = {
        name: (first.about.get(name), second.about.get(name))
        for name in dict.fromkeys([*first.about, *second.about])
        if first.about.get(name) != second.about.get(name)
    }
    only_first, only_second = [n for n in mine if n not in common], [n for n in theirs if n not in common]
    return Comparison(first.kind, _holm(found), only_first, only_second, about)


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows by what they are; a second of the same name gets a number."""
    named: dict[str, Row] = {}
    for row in rows:
        name, n = row.what, 1
        while name in named:
            n += 1
            name = f"{row.what} ({n})"
        named[name] = row
    return named


def _difference(name: str, a: Row, b: Row, first: Result, second: Result) -> Difference:
    paired = _paired(name, a, b, _values(first, a.what), _values(second, b.what))
    if paired is not None:
        return paired
    difference = b.value - a.value
    if not math.isfinite(difference) or not all(map(math.isfinite, (*a.interval, *b.interval))):
        return Difference(name, a.unit, a, b, difference, NOTHING, None, "no value or no interval in one of them")
    if min(a.n, b.n) < FEWEST:
        return Difference(name, a.unit, a, b, difference, NOTHING, None, f"fewer than {FEWEST} in one of them")
    ends = _put_together(a.value, a.interval, b.value, b.interval)
    own, other = _share(a), _share(b)
    if own is not None and other is not None:
        method = "two proportions (Fisher; interval by Newcombe)"
        return Difference(name, a.unit, a, b, difference, ends, fisher(own, other), method)
    reach = (difference - ends[0]) if difference > 0 else (ends[1] - difference)
    chance = 1.0 if difference == 0 else _two_sided(Z95 * abs(difference) / reach) if reach else 0.0
    return Difference(name, a.unit, a, b, difference, ends, chance, "by their intervals (MOVER)")


def _put_together(a: float, ends_a: tuple[float, float], b: float, ends_b: tuple[float, float]) -> tuple[float, float]:
    """The interval of b - a from the intervals of both, independent of each other."""
    down = math.hypot(b - ends_b[0], ends_a[1] - a)
    up = math.hypot(ends_b[1] - b, a - ends_a[0])
    return b - a - down, b - a + up


def _share(row: Row) -> Share | None:
    """What a row counted, if it is a share: a whole number of hits, with Wilson's interval."""
    hits = row.value * row.n
    if row.unit or not row.n or not 0 <= hits <= row.n or abs(hits - round(hits)) > 1e-6 * row.n:
        return None
    counted = Share(round(hits), row.n)
    return counted if np.allclose(counted.interval, row.interval, atol=1e-6) else None


def _two_sided(z: float) -> float:
    return math.erfc(z / math.sqrt(2))


# Pairs.


def _values(result: Result, what: str) -> dict[str, list[float]]:
    """What each item adds to a row, by the item's name; nothing if two have one name."""
    found: dict[str, list[float]] = {}
    for item in result.items:
        values, name = item.get("values"), str(item.get("item"))
        if not isinstance(values, Mapping) or what not in values or "item" not in item:
            continue
        if name in found:
            return {}
        given = values[what]
        found[name] = [float(v) for v in (given if isinstance(given, list) else [given]) if v is not None]
    return {name: own for name, own in found.items() if own}


def _statistic(a: Row, b: Row, own: Values, other: Values) -> Statistic | None:
    """What the row is of all values, in both results; None if it is neither mean nor median of them."""
    pairs = ((a, _table(own)), (b, _table(other)))
    for statistic in (np.nanmean, np.nanmedian):
        if all(math.isclose(float(statistic(t)), row.value, rel_tol=1e-6, abs_tol=1e-9) for row, t in pairs):
            return statistic
    return None


def _table(values: Values, width: int = 0) -> np.ndarray:
    """Values of each item as a row, NaN after its last."""
    table = np.full((len(values), max(width, *map(len, values))), np.nan)
    for row, own in zip(table, values, strict=True):
        row[: len(own)] = own
    return table


def _paired(
    name: str, a: Row, b: Row, mine: Mapping[str, list[float]], theirs: Mapping[str, list[float]]
) -> Difference | None:
    common = [item for item in mine if item in theirs]
    most = max(len(mine), len(theirs))
    if not common or len(common) < LEAST_COMMON * most:
        return None
    statistic = _statistic(a, b, list(mine.values()), list(theirs.values()))
    if statistic is None:
        return None
    own, other = [mine[item] for item in common], [theirs[item] for item in common]
    width = max(map(len, [*own, *other]))
    x, y = _table(own, width), _table(other, width)
    difference = float(statistic(y) - statistic(x))
    said = f"{len(common)} pairs" + ("" if len(common) == most else f" of {len(mine)} and {len(theirs)}")
    if len(common) < FEWEST:
        return Difference(name, a.unit, a, b, difference, NOTHING, None, f"{said}: fewer than {FEWEST}")
    ends = _bootstrap(x, y, statistic)
    if width == 1 and np.isin([x, y], (0.0, 1.0)).all():
        chance = mcnemar(int((x > y).sum()), int((y > x).sum()))
        return Difference(name, a.unit, a, b, difference, ends, chance, f"{said} (McNemar)")
    if width == 1 and statistic is np.nanmedian:
        x, y, statistic = _signed_ranks(x, y), np.zeros((len(x), 1)), np.nanmean
        said = f"{said}, signed ranks"
    return Difference(name, a.unit, a, b, difference, ends, _exchanged(x, y, statistic), f"{said} (permutation)")


def _signed_ranks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Differences [n, 1] as ranks of their size with their sign; equal sizes share the middle of their ranks."""
    differences = (y - x)[:, 0]
    _, which, counts = np.unique(np.abs(differences[differences != 0]), return_inverse=True, return_counts=True)
    ranks = np.zeros(len(differences))
    ranks[differences != 0] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return np.asarray(np.sign(differences) * ranks)[:, None]


def _exchanged(x: np.ndarray, y: np.ndarray, statistic: Statistic) -> float:
    """How often an exchange within the pairs gives as large a difference; among those at random is the one that was."""
    observed, n = abs(float(statistic(y) - statistic(x))), len(x)
    exact = n <= EXACT
    ways = np.array([*itertools.product((False, True), repeat=n)]) if exact else None
    source = np.random.default_rng(0)
    rounds = len(ways) if ways is not None else ROUNDS
    as_large = 0
    for size in _pieces(rounds, x.size):
        swaps = source.random((size, n)) < 0.5 if ways is None else ways[:size]
        ways = None if ways is None else ways[size:]
        own, other = (np.where(swaps[:, :, None], u, v).reshape(size, -1) for u, v in ((y, x), (x, y)))
        found = np.abs(statistic(other, axis=1) - statistic(own, axis=1))
        as_large += int((found >= observed - 1e-12).sum())
    return as_large / rounds if exact else (as_large + 1) / (rounds + 1)


def _bootstrap(x: np.ndarray, y: np.ndarray, statistic: Statistic) -> tuple[float, float]:
    """95 % of the differences of pairs that are drawn anew."""
    source, n = np.random.default_rng(0), len(x)
    found = []
    for size in _pieces(RESAMPLES, x.size):
        chosen = source.integers(n, size=(size, n))
        found.append(statistic(y[chosen].reshape(size, -1), axis=1) - statistic(x[chosen].reshape(size, -1), axis=1))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)


def _pieces(rounds: int, numbers: int) -> Iterator[int]:
    """Rounds that are computed together: a few million numbers at once."""
    size = max(1, 4_000_000 // numbers)
    yield from (min(size, rounds - start) for start in range(0, rounds, size))


def _holm(rows: Sequence[Difference]) -> list[Difference]:
    """The rows with their probabilities corrected for being looked at together."""
    order = sorted((row.probability, i) for i, row in enumerate(rows) if row.probability is not None)
    corrected: dict[int, float] = {}
    largest = 0.0
    for rank, (chance, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * chance))
        corrected[i] = largest
    return [replace(row, adjusted=corrected.get(i)) for i, row in enumerate(rows)]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
