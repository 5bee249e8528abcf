"""`personaplex eval prompts`: questions, and whether the answers are right."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from personaplex.cli.evaluation import recogniser_option, result_options, show, slots_option
from personaplex.cli.options import (
    TALKS_AS_ITSELF,
    check_sampling,
    model_option,
    note,
    note_blas,
    repeatable_sampling_options,
    sampling_changes,
    some_of,
)
from personaplex.errors import UsageError
from personaplex.files import check_writable

if TYPE_CHECKING:
    from personaplex.evaluate.prompts.questions import Question
    from personaplex.evaluate.result import Result

TESTS = (
    "trained", "phrasing", "voice", "natural", "natural phrasing", "bare", "recall", "pause", "quiet", "interruption",
    "backchannel", "long",
)  # fmt: skip


@click.command("prompts")
@click.argument("source", metavar="FILE|basic|nano")
@model_option
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Ask each question N times [default: the file's].")
@click.option("--size", type=click.IntRange(1), metavar="N", help="nano: items for each row of its table [default: 4].")
@click.option("--tests", callback=some_of(*TESTS), metavar="TEST,...", help="nano: only these [default: all but long].")
@slots_option
@recogniser_option(
    "Hear the answers too: one of `personaplex engines`, or grammar, which knows all that nano can say and alone hears "
    "nano's own test."
)
@result_options
@repeatable_sampling_options
def command(source: str, json_file: Path | None, quiet: bool, **options: Any) -> None:
    """Ask a model questions aloud, with many seeds, and count the answers that say what they must.

    The questions, their roles and voices, and the words that must be in the answers are a YAML file's (its form:
    docs/evaluation/prompts.md), or those of a set in this package: basic, four facts; nano, the held-out test of the
    small model, of which --size items make each row. Prints a table with 95 % intervals.
    """
    check_sampling(options)
    if json_file is not None:
        check_writable(json_file)
    note_blas(quiet=quiet)
    show((_held_out if source == "nano" else _questions)(source, options, quiet), json_file, quiet=quiet)


def _about(source: str, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    from personaplex.bench.machine import describe_machine

    changes = sampling_changes(options)
    return {
        "questions": source, "model": options["model"], "seed": options["seed"], "sampling": changes,
        "machine": describe_machine(), **more,
    }  # fmt: skip


def _questions(source: str, options: dict[str, Any], quiet: bool) -> Result:
    from personaplex.evaluate.hearing import check_ear, open_ear
    from personaplex.evaluate.prompts.evaluation import KIND, evaluate, prepare
    from personaplex.evaluate.prompts.questions import read_questions, without_roles
    from personaplex.evaluate.prompts.spoken import Speakers
    from personaplex.evaluate.result import Result
    from personaplex.runtime.engine import Engine

    for name in ("size", "tests"):
        if options[name] is not None:
            raise UsageError(f"--{name} is for nano's own test: `personaplex eval prompts nano`")
    questions = read_questions(source)
    check_ear(options["recogniser"])
    with ExitStack() as stack:
        ear = None
        if options["recogniser"] is not None:
            ear = stack.enter_context(closing(open_ear(options["recogniser"], options["model"])))
        speakers = stack.enter_context(Speakers())
        # What can be wrong with a question shows before a model is loaded; its voices are known only afterwards.
        asked, failures, error = prepare(questions, speakers, (), options["seed"], options["seeds"], {})
        about = _about(source, options, recogniser=None if ear is None else ear.name, seeds=options["seeds"])
        if error is not None:
            return Result(KIND, about, [], failures=failures, error=error)
        engine = stack.enter_context(Engine(options["model"], min(options["slots"], _most(questions, options))))
        if not engine.model.config.prompts:
            note(TALKS_AS_ITSELF, quiet=quiet)
            questions = without_roles(questions)
        voices, changes = engine.model.list_voices(), sampling_changes(options)
        asked, failures, _ = prepare(questions, speakers, voices, options["seed"], options["seeds"], changes)
        return evaluate(engine, asked, engine.slots, ear, about, failures, lambda text: note(text, quiet=quiet))


def _most(questions: list[Question], options: dict[str, Any]) -> int:
    from personaplex.evaluate.prompts.evaluation import seeds_of

    return sum(len(seeds_of(question, options["seed"], options["seeds"])) for question in questions)


def _held_out(source: str, options: dict[str, Any], quiet: bool) -> Result:
    from personaplex.evaluate.hearing import GRAMMAR
    from personaplex.evaluate.prompts import heldout
    from personaplex.model import PersonaPlex

    if options["seeds"] is not None:
        raise UsageError("--seeds is for questions of your own; nano's test has --size, and other questions per --seed")
    hears = options["recogniser"]
    if click.get_current_context().get_parameter_source("recogniser") is ParameterSource.ENVIRONMENT:
        hears = None  # it is set for what it can hear, which is not this
    if hears not in (None, GRAMMAR):
        raise UsageError("nano's test is heard by its own grammar; leave --recogniser out, or say grammar")
    if sampling_changes(options):
        raise UsageError("nano's test has the text greedy and the sound sampled as the model has it; leave these out")
    per_row = options["size"] or heldout.PER_ROW
    model = PersonaPlex.from_pretrained(options["model"])
    tests = options["tests"] or heldout.USUAL_TESTS
    about = _about(source, options, size=per_row, tests=list(tests))
    return heldout.evaluate(
        model,
        per_row,
        options["seed"],
        about,
        tests=tests,
        batch=options["slots"],
        listens=hears is not None,
        tell=lambda text: note(text, quiet=quiet),
    )
