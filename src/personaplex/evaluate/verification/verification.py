"""`verify` in one call: a model is spoken to, heard and checked, and so is what must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from personaplex.conversation import Settings
from personaplex.errors import ConversationError, PersonaPlexError
from personaplex.evaluate.degeneracy import measure
from personaplex.evaluate.hearing import GRAMMAR, Ear
from personaplex.evaluate.prompts.asking import Answer, Asked, ask_all
from personaplex.evaluate.prompts.table import WER
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import Row, share
from personaplex.evaluate.statistics import ErrorRate
from personaplex.evaluate.verification.agreement import agreement, is_exact, run_offline
from personaplex.evaluate.verification.broken import break_model
from personaplex.evaluate.verification.checks import CHECKS, Exhibit, Finding, Limits, judge
from personaplex.evaluate.verification.controls import Control, exchanged, is_another, spoilt
from personaplex.evaluate.words import words_said
from personaplex.model import PersonaPlex
from personaplex.models.streams import AGENT
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits as EngineLimits

AGREES = "agrees"
AGREES_MEANS = "live engine and library say the same"
AT_LEAST = 0.75
"""Share of the answers that must pass each check: one in four may be wrong by chance, as sampling has it."""
KIND = "verify"
CONTROL = "what must fail"
"""How the rows of controls begin."""
_CONTROL_LOST = "the control "
"""How the failures of controls begin."""
Keep: TypeAlias = Callable[[Answer, Settings, "str | None", "str | None"], str]
"""Keeps an answer, with what is heard of it and of its question if that is known, under the name that it returns."""


@dataclass
class _Evidence:
    """One conversation, all that was made of it, and what was found."""

    answer: Answer
    settings: Settings
    exhibit: Exhibit
    asked_heard: str | None
    kept: str | None = None
    findings: dict[str, Finding] = field(default_factory=dict)


@dataclass
class _Controls:
    """Each time a check was tried on what must fail it: by check, the control's name and whether it passed."""

    tried: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    lost: list[Failure] = field(default_factory=list)

    def add(self, name: str, about: str, findings: Mapping[str, Finding], must_fail: Sequence[str]) -> None:
        tried = {check: findings[check] for check in must_fail if check in findings}
        for check, finding in tried.items():
            self.tried.setdefault(check, []).append((name, finding.passed))
        self.items.append({"control": name, "of": about, "must_fail": list(tried), **_as_json(findings)})

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """A control that cannot be tried is told, and does not end the others."""
        try:
            yield
        except PersonaPlexError as error:
            self.lost.append(Failure(f"{_CONTROL_LOST}{name!r}", str(error)))


def verify(
    model: PersonaPlex,
    asked: Sequence[Asked],
    ear: Ear,
    about: Mapping[str, Any],
    *,
    limits: Limits | None = None,
    at_least: float = AT_LEAST,
    slots: int = 4,
    failures: Sequence[Failure] = (),
    only_controls: Collection[str] = (),
    tell: Callable[[str], None] = lambda _: None,
    keep: Keep | None = None,
) -> Result:
    """Ask, hear, check, and try every check on what must fail it. `model` is broken on purpose in the end: load anew.

    `only_controls` are names of questions whose answers are the wrong ones to others, and are not judged themselves.
    `keep` is given every answer, also one that could not be heard. The result's `about` says whether the model `passed`
    and the `reasons` why not (`troubles`). When no conversation came about, the result's `error` says so.
    """
    limits = limits or Limits()
    evidence, failed = list[_Evidence](), list(failures)
    settings = {each.question.name: each.settings for each in asked}
    # Without pinning, the engine does the library's arithmetic also when a call outlasts the window.
    with Engine(model, slots, limits=EngineLimits(pinned_frames=0)) as engine:
        for answer in ask_all(engine, asked, slots):
            if isinstance(answer, Failure):
                failed.append(answer)
                tell(f"{answer.item}: no answer: {answer.reason}")
                continue
            own = settings[answer.question.name](answer.seed)
            # What is kept says which voice and role a question without its own was asked with.
            shown = replace(
                own,
                voice=model.default_voice if own.voice is None else own.voice,
                prompt=model.default_prompt if own.prompt is None else own.prompt,
            )
            try:
                exhibit = Exhibit(answer.sound, answer.said, ear.hear(answer.sound))
                asked_heard = _question_heard(answer, ear)
            except PersonaPlexError as error:
                if keep is not None:
                    keep(answer, shown, None, None)
                failed.append(Failure(answer.name, str(error)))
                tell(f"{answer.name}: not heard: {error}")
                continue
            kept = None if keep is None else keep(answer, shown, exhibit.heard, asked_heard)
            evidence.append(_Evidence(answer, own, exhibit, asked_heard, kept))
            tell(f"{answer.name}: {answer.said or '(nothing)'} | heard: {exhibit.heard or '(nothing)'}")
    controls = _Controls()
    evidence = _judge(model, evidence, limits, controls, failed, tell)
    judged = [each for each in evidence if each.answer.question.name not in only_controls]
    if not judged:
        said = f"no answer could be measured; the first: {failed[0].reason}" if failed else "nothing to ask"
        return unmeasured(about, failed, ConversationError(said))
    n_lost = sum(failure.item.rsplit(" (seed", 1)[0] not in only_controls for failure in failed)
    first = next((each for each in judged if each.findings["silence"].passed), judged[0])
    _try_controls(evidence, first, ear, limits, controls, tell)
    _try_broken(model, first, ear, limits, controls, tell)
    failed += controls.lost
    items = [_item(each) for each in judged]
    rows = _rows(judged, controls, n_lost, at_least)
    result = Result(KIND, about, rows, [*items, *controls.items], failed)
    found = troubles(result)
    return replace(result, about={**about, "passed": not found, "reasons": found})


def unmeasured(about: Mapping[str, Any], failures: Sequence[Failure], error: PersonaPlexError) -> Result:
    """The result where nothing could be measured: that is not passed, either."""
    return Result(KIND, {**about, "passed": False, "reasons": [str(error)]}, [], failures=failures, error=error)


def _question_heard(answer: Answer, ear: Ear) -> str | None:
    """What the recogniser hears of the question; the grammar of answers can hear none."""
    return None if ear.name == GRAMMAR else ear.hear(answer.user)


def troubles(result: Result) -> list[str]:
    """Every row that misses its goal and every control that could not be tried, in words; none for one that passes."""
    found = []
    for row in result.rows:
        if row.goal is None or row.met:
            continue
        if not row.at_most:
            found.append(f"{row.what}: {row.value:.0%} of {row.n} ({row.goal:.0%} expected)")
            continue
        check = row.what.removeprefix(CONTROL).split(":")[0].strip()
        passed = [
            item["control"] for item in result.items if check in item.get("must_fail", ()) and check in item["passed"]
        ]
        names = " and ".join(repr(name) for name in dict.fromkeys(passed))
        found.append(f"the control {names} passed the check {check!r}, so that check shows nothing here")
    lost = [failure for failure in result.failures if failure.item.startswith(_CONTROL_LOST)]
    return found + [f"{failure.item} could not be tried: {failure.reason}" for failure in lost]


def _judge(
    model: PersonaPlex,
    evidence: Sequence[_Evidence],
    limits: Limits,
    controls: _Controls,
    failed: list[Failure],
    tell: Callable[[str], None],
) -> list[_Evidence]:
    """The checks of every answer, and whether the library gives the same; another's answer must not agree.

    Those that the library could answer, too; the others are added to `failed`.
    """
    judged = []
    for i, each in enumerate(evidence):
        tell(f"{each.answer.name}: the same through the library")
        try:
            offline = run_offline(model, each.answer, each.settings)
        except PersonaPlexError as error:
            failed.append(Failure(each.answer.name, f"the library does not answer: {error}"))
            continue
        codes = offline.reply.tokens[AGENT, each.answer.began :]
        each.exhibit = replace(each.exhibit, codes=codes)
        each.findings = judge(each.exhibit, each.answer.question.expectation, limits)
        each.findings[AGREES] = agreement(offline, each.answer)
        other = _another(evidence, i)
        if other is not None:
            controls.add("another answer", each.answer.name, {AGREES: agreement(offline, other)}, (AGREES,))
        judged.append(each)
    return judged


def _another(evidence: Sequence[_Evidence], i: int) -> Answer | None:
    """The next answer that the library's cannot agree with: where rounding is forgiven, only to another question."""
    for step in range(1, len(evidence)):
        other = evidence[(i + step) % len(evidence)].answer
        if is_exact() or is_another(evidence[i].answer.question, other.question):
            return other
    return None


def _try_controls(
    evidence: Sequence[_Evidence],
    first: _Evidence,
    ear: Ear,
    limits: Limits,
    controls: _Controls,
    tell: Callable[[str], None],
) -> None:
    def put(control: Control) -> None:
        found = judge(control.exhibit, control.expectation, limits)
        controls.add(control.name, control.of, found, control.must_fail)

    exhibits, questions = [each.exhibit for each in evidence], [each.answer.question for each in evidence]
    for control in exchanged(exhibits, questions):
        put(control)
    for control in spoilt(first.exhibit, first.answer.question):
        tell(f"control: {control.name}")
        with controls.trying(control.name):
            put(control.heard_by(ear))


def _try_broken(
    model: PersonaPlex,
    first: _Evidence,
    ear: Ear,
    limits: Limits,
    controls: _Controls,
    tell: Callable[[str], None],
) -> None:
    """The first question once more, to the same model with its weights shuffled."""
    tell("control: the model with its weights shuffled")
    answer, name = first.answer, "broken model"
    with controls.trying(name):
        offline = run_offline(break_model(model), answer, first.settings)
        reply, sound = offline.reply, offline.reply.audio[len(answer.agent) - len(answer.sound) :]
        exhibit = Exhibit(sound, reply.text, ear.hear(sound), reply.tokens[AGENT, answer.began :])
        findings = judge(exhibit, answer.question.expectation, limits) | {AGREES: agreement(offline, answer)}
        controls.add(name, answer.name, findings, ("words", "heard", "errors", AGREES))


_ROWS = {check: f"{check}: {means}" for check, means in (CHECKS | {AGREES: AGREES_MEANS}).items()}


def _rows(evidence: Sequence[_Evidence], controls: _Controls, n_failed: int, at_least: float) -> list[Row]:
    made = []
    for check, row in _ROWS.items():
        outcomes = [each.findings[check].passed for each in evidence if check in each.findings]
        if outcomes:
            goal = 1.0 if check == AGREES else at_least
            made.append(share(row, outcomes + [False] * n_failed, goal))
        else:
            made.append(Row(f"{row}: not checked, none were given", math.nan, (math.nan, math.nan), 0))
    rate = ErrorRate.over((words_said(each.exhibit.text), words_said(each.exhibit.heard)) for each in evidence)
    made.append(Row(WER, rate.value, rate.interval, rate.n, better="lower"))
    for check, tries in controls.tried.items():
        names = ", ".join(dict.fromkeys(name for name, _ in tries))
        made.append(share(f"{CONTROL} {check}: {names}", [passed for _, passed in tries], 0.0, at_most=True))
    return made


def _item(each: _Evidence) -> dict[str, Any]:
    answer = each.answer
    return {
        "item": answer.name,
        "question": answer.question.name,
        "seed": answer.seed,
        "asked": answer.question.say or str(answer.question.audio),
        "asked_heard": each.asked_heard,
        "expected": answer.question.expectation.described(),
        "said": answer.said,
        "heard": each.exhibit.heard,
        "before": answer.all_said.removesuffix(answer.said).strip(),
        "delay_ms": answer.delay_ms,
        "kept": each.kept,
        "engine_signs": list(answer.degenerate),
        "measures": measure(each.exhibit.pcm, codes=each.exhibit.codes, text=each.exhibit.text).as_json(),
        **_as_json(each.findings),
        "values": {_ROWS[check]: [float(finding.passed)] for check, finding in each.findings.items()},
    }


def _as_json(findings: Mapping[str, Finding]) -> dict[str, Any]:
    return {
        "passed": [check for check, finding in findings.items() if finding.passed],
        "failed": {check: finding.reason for check, finding in findings.items() if not finding.passed},
    }
