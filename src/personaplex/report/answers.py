"""The answers of an evaluation on the page: what was asked and expected, what was said and heard, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from personaplex.evaluate.result import Result
from personaplex.report import tables

MOST_OPEN = 24
"""Answers that are shown at once; more are folded away."""


def verdict(result: Result) -> str:
    """Whether what was verified passed, and why not; nothing for an evaluation without a verdict."""
    passed = result.about.get("passed")
    if not isinstance(passed, bool):
        return ""
    reasons = result.about.get("reasons")
    listed = "".join(f"<li>{escape(str(one))}</li>" for one in reasons) if isinstance(reasons, list | tuple) else ""
    said = (
        f'<p class="{"good" if passed else "bad"}"><strong>{"It passes." if passed else "It does not pass."}</strong>'
    )
    return f"{said}</p>" + (f'<ul class="notes">{listed}</ul>' if listed else "")


def of_answers(result: Result) -> str:
    """Each question, what was expected, and every answer to it; nothing for an evaluation that asks nothing."""
    items = [item for item in result.items if item.get("asked") and isinstance(item.get("said"), str)]
    if not items:
        return ""
    body = [row for _, group in groupby(items, key=_question) for row in _rows(list(group))]
    shown = tables.table(["<question", "seed", "<said", "<heard", "<verdict"], body, "Answers")
    n = len(items)
    return shown if n <= MOST_OPEN else f"<details><summary>The {n} answers</summary>{shown}</details>"


def _question(item: Mapping[str, Any]) -> tuple[str, str, str]:
    """What was asked, of whom, and what was expected."""
    expected = item.get("expected")
    if isinstance(expected, list | tuple):
        expected = "; ".join(" ".join(map(str, one)) if isinstance(one, list | tuple) else str(one) for one in expected)
    return _text(item["asked"]), _text(item.get("persona")), _text(expected)


def _rows(items: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    asked, persona, expected = _question(items[0])
    about = "".join(
        f'<br><span class="soft">{escape(line)}</span>'
        for line in (f"persona: {persona}" if persona else "", f"expected: {expected}" if expected else "")
        if line
    )
    for i, item in enumerate(items):
        kind, said = _verdict(item)
        first = [f'<td class="text" rowspan="{len(items)}">{escape(asked)}{about}</td>'] if i == 0 else []
        yield [
            *first,
            escape(_text(item.get("seed"))),
            f'<td class="text">{escape(_text(item["said"])) or "(nothing)"}</td>',
            f'<td class="text">{_heard(item)}</td>',
            f'<td class="text {kind}">{escape(said)}</td>',
        ]


def _heard(item: Mapping[str, Any]) -> str:
    return "–" if item.get("heard") is None else escape(_text(item["heard"])) or "(nothing)"


def _verdict(item: Mapping[str, Any]) -> tuple[str, str]:
    """Its style, and in words."""
    failed = item.get("failed")
    if isinstance(failed, Mapping):
        why = "; ".join(f"{check}: {_text(reason)}" for check, reason in failed.items())
        return ("bad", why) if failed else ("good", "passes every check")
    right = item.get("right")
    if right is None:
        return "soft", "–"
    return ("good", "right") if right else ("bad", ", ".join(["not right", *map(str, item.get("missing") or ())]))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " / ".join(map(_text, value))
    return "" if value is None else str(value)
