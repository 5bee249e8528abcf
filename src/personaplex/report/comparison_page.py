"""Two results beside each other, for people: as a table in the terminal, and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from personaplex.drawing.style import STYLE, page
from personaplex.evaluate.row import in_a_cell
from personaplex.evaluate.statistics import FEWEST
from personaplex.report import tables
from personaplex.report.about import differences, facts, settings
from personaplex.report.comparison import LEVEL, Comparison, Difference
from personaplex.report.page import MORE_STYLE

MOST_LISTED = 6
_KIND = {"more than noise": "good", "uncertain": "", "within noise": "soft", "cannot tell": "soft"}


def markdown(comparison: Comparison) -> str:
    """The table as a person reads it."""
    lines = ["| what | first | second | difference | 95 % interval | verdict | how |", "|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(map(in_a_cell, _cells(row))) + " |" for row in comparison.rows]
    return "\n".join([*lines, "", *_remarks(comparison)])


def html(comparison: Comparison, first: str, second: str) -> str:
    """The page."""
    return page(f"{first} and {second}", "\n".join(_parts(comparison)), STYLE + MORE_STYLE)


def _parts(comparison: Comparison) -> Iterator[str]:
    yield "".join(f"<p>{escape(line)}</p>" for line in _remarks(comparison))
    head = ["<what", "first", "second", "difference", "95 % interval", "<verdict", "<how"]
    body = []
    for row in comparison.rows:
        cells = [escape(cell) for cell in _cells(row)]
        kind = "bad" if row.verdict == "more than noise" and row.better is False else _KIND[row.verdict]
        cells[0] = f'<td class="what">{cells[0]}</td>'
        cells[5:] = f'<td class="text {kind}">{cells[5]}</td>', f'<td class="text">{cells[6]}</td>'
        body.append(cells)
    yield tables.table(head, body, f"Results of {comparison.kind}")
    first, second = ({name: pair[i] for name, pair in comparison.about.items()} for i in (0, 1))
    differ = [name for name in comparison.about if name in settings(first) and name in settings(second)]
    if differ:
        pairs = [
            [
                escape(name),
                *(
                    f'<td class="text">{escape("; ".join(f"{k} {v}".strip() for k, v in facts({"": one})) or "–")}</td>'
                    for one in comparison.about[name]
                ),
            ]
            for name in differ
        ]
        yield "<h2>Measured with</h2>" + tables.table(["<what", "<first", "<second"], pairs, "What else differs")


def _cells(row: Difference) -> list[str]:
    low, high = row.interval
    interval = "" if math.isnan(low) else f"{_signed(low, row.unit)} to {_signed(high, row.unit)}"
    direction = {True: ", better", False: ", worse", None: ""}[row.better] if row.verdict == "more than noise" else ""
    chance = "" if row.adjusted is None else f" (p {row.probability:.2g}, corrected {row.adjusted:.2g})"
    return [
        row.what,
        f"{tables.number(row.first.value, row.unit)} (n {row.first.n})",
        f"{tables.number(row.second.value, row.unit)} (n {row.second.n})",
        _signed(row.difference, row.unit),
        interval,
        f"{row.verdict}{direction}{chance}",
        row.method,
    ]


def _signed(value: float, unit: str) -> str:
    said = tables.number(value, unit)
    return f"+{said}" if value > 0 else said


def _remarks(comparison: Comparison) -> Iterator[str]:
    n = comparison.n_compared
    if n == 0:
        yield f"Of no row can anything be said: each has fewer than {FEWEST} in one of them, or no value or interval."
    elif n == 1:
        yield f"1 row compared: a difference with a p below {LEVEL} is called “more than noise”."
    else:
        yield (
            f"{n} rows compared at once: “more than noise” holds after Holm's correction for that many, “uncertain” "
            "would hold for one alone."
        )
    differ = list(differences(comparison.about))
    if differ:
        yield f"Measured with (first and second): {_listed(differ)}."
    only = [
        f"{len(names)} row{'s' * (len(names) != 1)} of the {which} ({_listed(names)})"
        for which, names in (("first", comparison.only_first), ("second", comparison.only_second))
        if names
    ]
    if only:
        yield f"Found in one alone: {', '.join(only)}."


def _listed(names: Sequence[str]) -> str:
    """The first ones, and how many more."""
    more = len(names) - MOST_LISTED
    return "; ".join(map(in_a_cell, names[:MOST_LISTED])) + (f"; and {more} more" if more > 0 else "")
