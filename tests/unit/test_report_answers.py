"""Evaluations on the page: the verdict with its reasons, and each question with its answers and what was expected."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest

from personaplex.evaluate.prompts.expectation import Expectation
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.prompts.table import Outcome
from personaplex.evaluate.result import Result
from personaplex.evaluate.row import share
from personaplex.report.answers import MOST_OPEN
from personaplex.report.page import html
from personaplex.report.report import Report


def page(about: dict[str, Any], *items: dict[str, Any], kind: str = "verify") -> str:
    return html(Report({}, [], [("r.json", Result(kind, about, [share("x", [True])], items))], [], []))


def cells(shown: str) -> list[list[str]]:
    """The rows of the table of answers, as text."""
    table = shown.split("<caption>Answers</caption>")[1].split("</table>", maxsplit=1)[0]
    rows = re.findall("<tr>(.*?)</tr>", table)[1:]
    return [
        [" ".join(unescape(re.sub("<[^>]*>", " ", cell)).split()) for cell in re.findall("<td[^>]*>(.*?)</td>", row)]
        for row in rows
    ]


ANSWER = {"asked": "when <b> do you open", "expected": "seven or 7", "said": "at nine", "heard": "", "failed": {}}


def test_a_failed_verification_says_so_and_why() -> None:
    shown = page({"passed": False, "reasons": ["words: 0% of <2>"]}, {**ANSWER, "failed": {"words": "without 'seven'"}})
    assert "It does not pass." in shown and "<li>words: 0% of &lt;2&gt;</li>" in shown
    assert shown.index("It does not pass.") < shown.index("<caption>Evaluation"), "first of all"
    assert cells(shown) == [
        ["when <b> do you open expected: seven or 7", "", "at nine", "(nothing)", "words: without 'seven'"]
    ]


def test_a_passed_one_says_so_and_another_evaluation_has_no_verdict() -> None:
    shown = page({"passed": True, "reasons": []}, ANSWER, {"control": "noise", "of": "x"})
    assert "It passes." in shown and "does not pass" not in shown
    assert [row[-1] for row in cells(shown)] == ["passes every check"]
    other = page({"model": "tiny"}, {"item": "a.wav", "values": {}}, kind="codec")
    assert "pass" not in other.split("<h1")[1] and "Answers" not in other


def test_prompts_show_each_question_once_with_its_answers() -> None:
    """From what `eval prompts` keeps of an answer."""
    question = Question("opens", say="when", expectation=Expectation((("seven", "7"),)), persona="anna")
    items = [Outcome(question, seed, said, None, 80.0).as_json() for seed, said in ((1, "at seven"), (2, "at nine"))]
    items.append(Outcome(Question("closes", say="until when"), 1, "", "ten", None).as_json())
    first, second, third = cells(page({}, *items, kind="prompts"))
    assert first == ["when persona: anna expected: seven or 7", "1", "at seven", "–", "right"]
    assert second == ["2", "at nine", "–", "not right, without 'seven' or '7'"], "the question stands once"
    assert third == ["until when", "1", "(nothing)", "ten", "not right, nothing is said"]


def test_nanos_own_test_is_shown_too() -> None:
    own = {
        "asked": ["hello", "when"],
        "said": "ten",
        "right": None,
        "expected": ["price", ["lamp", 10]],
        "heard": "ten",
    }
    (row,) = cells(page({}, own, kind="prompts"))
    assert row == ["hello / when expected: price; lamp 10", "", "ten", "ten", "–"]


def test_a_page_tells_settings_and_not_what_machines_need() -> None:
    """A hash by its beginning; what is nested not at all, but a control that was not told from the real thing."""
    controls = [{"control": name, "measure": "STOI", "held": held} for name, held in (("noise", False), ("hum", True))]
    about: dict[str, Any] = {
        "model": "tiny",
        "codec": "0123456789abcdef" * 4,
        "controls": controls,
        "delay_samples": {"Mimi": 3},
    }
    about["machine"] = {"cpu": "M9", "blas": "/usr/lib/blas.so"}
    shown = page({**about, "prompts": {"A": {"pitch_hz": 1.0}}, "greedy": False}, kind="codec")
    facts = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", shown)
    assert facts == [("model", "tiny"), ("codec", "01234567…"), ("machine", "cpu M9"), ("greedy", "no")]
    assert "<li>noise, by STOI</li>" in shown and "hum" not in shown


@pytest.mark.parametrize(("n", "folded"), [(MOST_OPEN, False), (MOST_OPEN + 1, True)])
def test_many_answers_are_folded(n: int, folded: bool) -> None:
    assert (f"<summary>The {n} answers</summary>" in page({}, *[ANSWER] * n)) is folded
