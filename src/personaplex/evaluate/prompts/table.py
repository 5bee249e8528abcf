"""What came of the questions, counted: each beside its 95 % interval, and beside what chance would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personaplex.evaluate.degeneracy import measure, signs
from personaplex.evaluate.prompts.asking import Answer
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.row import Row, median, share
from personaplex.evaluate.statistics import ErrorRate
from personaplex.evaluate.words import words_said

RIGHT, HEARD_RIGHT = "answer right", "answer right as heard"
WER = "what is heard against what is said: WER"
NOTHING, DEGENERATE = "nothing is said", "degenerate speech"
DELAY, EARLY = "first word after the question's end, median", "answered before the question's end"


@dataclass(frozen=True)
class Outcome:
    """What is counted of one conversation. `heard` is a recogniser's text, None where nobody listened."""

    question: Question
    seed: int
    said: str
    heard: str | None
    delay_ms: float | None
    signs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of which question, with which seed."""
        return f"{self.question.name} (seed {self.seed})"

    @property
    def is_right(self) -> bool:
        """Whether the text says what it must."""
        return self.question.expectation.is_met(self.said)

    @property
    def values(self) -> dict[str, list[float]]:
        """What it adds to the rows, for comparisons in pairs."""
        found: dict[str, list[float]] = {
            RIGHT: [self.is_right],
            f"{self.question.name}: {RIGHT}": [self.is_right],
            NOTHING: [not words_said(self.said)],
            DEGENERATE: [bool(self.signs)],
        }
        if self.heard is not None:
            found[HEARD_RIGHT] = [self.is_heard_right]
        if self.delay_ms is not None:
            found |= {DELAY: [self.delay_ms], EARLY: [self.delay_ms < 0]}
        return {what: [float(value) for value in own] for what, own in found.items()}

    @property
    def is_heard_right(self) -> bool:
        """Whether it is heard, too."""
        return self.heard is not None and self.question.expectation.is_met(self.heard)

    def as_json(self) -> dict[str, Any]:
        """One item of the result."""
        expectation = self.question.expectation
        return {
            "item": self.name,
            "question": self.question.name,
            "asked": self.question.say or str(self.question.audio or ""),
            "expected": expectation.described(),
            "persona": self.question.persona,
            "seed": self.seed,
            "said": self.said,
            "right": self.is_right,
            "missing": expectation.missing(self.said),
            "heard": self.heard,
            "heard_right": None if self.heard is None else self.is_heard_right,
            "delay_ms": self.delay_ms,
            "signs": list(self.signs),
            "values": self.values,
        }


def outcome(answer: Answer, heard: str | None) -> Outcome:
    """What is counted of an answer: the sound itself is not needed any more."""
    found = [sign.kind for sign in signs(measure(answer.sound, text=answer.said)) if sign.kind != "silence"]
    kinds = tuple(dict.fromkeys([*answer.degenerate, *found]))
    return Outcome(answer.question, answer.seed, answer.said, heard, answer.delay_ms, kinds)


def rows(outcomes: Sequence[Outcome], asked: Mapping[str, int]) -> list[Row]:
    """Every row. `asked` is how often each question was asked: what could not be measured counts as not right."""
    lost = sum(asked.values()) - len(outcomes)
    made = [share(RIGHT, [o.is_right for o in outcomes] + [False] * lost, better="higher")]
    listened = [o for o in outcomes if o.heard is not None]
    if listened:
        made.append(share(HEARD_RIGHT, [o.is_heard_right for o in outcomes] + [False] * lost, better="higher"))
        rate = ErrorRate.over((words_said(o.said), words_said(o.heard or "")) for o in listened)
        made.append(Row(WER, rate.value, rate.interval, rate.n, better="lower"))
    made.append(share(NOTHING, [not words_said(o.said) for o in outcomes], better="lower"))
    made.append(share(DEGENERATE, [bool(o.signs) for o in outcomes], better="lower"))
    delays = [o.delay_ms for o in outcomes if o.delay_ms is not None]
    if delays:
        made.append(median(DELAY, delays))
        made.append(share(EARLY, [ms < 0 for ms in delays], better="lower"))
    chance = list(by_chance(outcomes))
    if chance:
        made.append(share("chance: another question's answer taken for this one's", chance))
    for name, n in asked.items():
        own = [o.is_right for o in outcomes if o.question.name == name]
        made.append(share(f"{name}: {RIGHT}", own + [False] * (n - len(own)), better="higher"))
    return made


def by_chance(outcomes: Sequence[Outcome]) -> Iterable[bool]:
    """Each question against the answer to the next one that wants other words: how often is that right?"""
    n = len(outcomes)
    for i, one in enumerate(outcomes):
        others = (outcomes[(i + step) % n] for step in range(1, n))
        other = next((o for o in others if one.question.expectation.differs_from(o.question.expectation)), None)
        if other is not None:
            yield one.question.expectation.is_met(other.said)
