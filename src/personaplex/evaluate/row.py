"""One number of an evaluation: what it is, its interval, of how many; tables of them for people and for machines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from personaplex.errors import UsageError
from personaplex.evaluate.statistics import Share, mean_interval, median_interval, pooled_mean_interval, quantile

Better: TypeAlias = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    """One number: what it is, its 95 % interval, of how many; `goal` None is for information.

    `better` says which way is, None where that is not known; a goal says it, too.
    """

    what: str
    value: float
    interval: tuple[float, float]
    n: int
    goal: float | None = None
    at_most: bool = False
    unit: str = ""
    better: Better | None = None

    def __post_init__(self) -> None:
        if self.better is None and (self.at_most or self.goal is not None):
            object.__setattr__(self, "better", "lower" if self.at_most else "higher")

    @property
    def met(self) -> bool | None:
        """Whether the value reaches its goal; None without a goal, or without a value."""
        if self.goal is None or math.isnan(self.value):
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def share(
    what: str,
    outcomes: Iterable[bool],
    goal: float | None = None,
    *,
    at_most: bool = False,
    better: Better | None = None,
) -> Row:
    """A row that counts outcomes."""
    counted = Share.of(outcomes)
    return Row(what, counted.value, counted.interval, counted.n, goal, at_most, better=better)


def median(what: str, values: Sequence[float], goal: float | None = None) -> Row:
    """A row of milliseconds, the fewer the better."""
    return Row(what, quantile(values, 0.5), median_interval(values), len(values), goal, at_most=True, unit="ms")


def mean(
    what: str,
    values: Sequence[float],
    goal: float | None = None,
    *,
    at_most: bool = False,
    unit: str = "",
    better: Better | None = None,
) -> Row:
    """A row of a mean, with its bootstrap interval; what is NaN was not measured, and does not count."""
    known = [value for value in values if not math.isnan(value)]
    average = sum(known) / len(known) if known else math.nan
    return Row(what, average, mean_interval(known), len(known), goal, at_most, unit, better)


def pooled(what: str, groups: Sequence[Sequence[float]], *, better: Better | None = None) -> Row:
    """A row of the mean of all values of all groups, such as those of one clip: its interval resamples groups.

    `n` counts the values; what is NaN was not measured, and does not count.
    """
    known = [[value for value in group if not math.isnan(value)] for group in groups]
    values = [value for group in known for value in group]
    average = sum(values) / len(values) if values else math.nan
    return Row(what, average, pooled_mean_interval(known), len(values), better=better)


def as_markdown(table: Sequence[Row]) -> str:
    """The table as a person reads it; a goal that is missed is said to be."""
    lines = ["| what | goal | measured | 95 % interval | n |", "|---|---|---|---|---|"]
    for row in table:
        # Where the name tells the unit, the numbers need not.
        unit = "" if row.unit != "ms" and f"({row.unit}" in row.what else row.unit
        sign = "" if row.goal is None else ("≤ " if row.at_most else "≥ ") + _number(row.goal, unit)
        verdict = " (missed)" if row.met is False else ""
        low, high = row.interval
        interval = "" if math.isnan(low) else f"{_number(low, unit)} to {_number(high, unit)}"
        measured = _number(row.value, unit) + verdict
        lines.append(f"| {in_a_cell(row.what)} | {sign} | {measured} | {interval} | {row.n} |")
    return "\n".join(lines)


def in_a_cell(text: str) -> str:
    """A text that a table's row can hold: a question's or a file's name may have lines and bars in it."""
    return " ".join(text.split()).replace("|", "\\|")


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "never"
    return f"{value:.0f} {unit}" if unit == "ms" else f"{value:.3f} {unit}".strip()


def as_json(table: Sequence[Row]) -> list[dict[str, object]]:
    """The table for machines: no number is infinite or missing, None stands for it."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return [
        asdict(row) | {"value": finite(row.value), "interval": [finite(end) for end in row.interval], "met": row.met}
        for row in table
    ]


def from_json(entries: Iterable[dict[str, Any]]) -> list[Row]:
    """What `as_json` made; an infinite median comes back as unknown."""

    def number(value: float | None) -> float:
        return math.nan if value is None else value

    made = []
    for entry in entries:
        low, high = entry["interval"]
        known = {key: value for key, value in entry.items() if key not in ("met", "value", "interval")}
        made.append(Row(**known, value=number(entry["value"]), interval=(number(low), number(high))))
    return made


def put_between(page: str, numbers: str, marker: str = "numbers") -> str:
    """`page` with what stands between its two lines of that name replaced. Raises UsageError when it lacks them."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise UsageError(f"the page needs the lines {begin} and {end}, each once, to put the numbers between")
    before, after = page.index(begin) + len(begin), page.index(end)
    return f"{page[:before]}\n{numbers.strip()}\n{page[after:]}"
