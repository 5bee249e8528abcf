"""`personaplex verify`: the round trip. Speak to a model, recognise its answers, check them."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personaplex.cli.evaluation import recogniser_option, result_options, show, slots_option
from personaplex.cli.kept_answers import KeptAnswers
from personaplex.cli.options import (
    TALKS_AS_ITSELF,
    check_sampling,
    find_voice,
    model_option,
    note,
    note_blas,
    repeatable_sampling_options,
    sampling_changes,
)
from personaplex.errors import PersonaPlexError, UsageError, VerificationError
from personaplex.files import check_writable

if TYPE_CHECKING:
    from personaplex.evaluate.prompts.asking import Asked
    from personaplex.evaluate.prompts.questions import Question
    from personaplex.evaluate.result import Failure, Result
    from personaplex.evaluate.verification.checks import Limits

_OF_ONE = ("ask", "audio", "expect", "voice", "system_prompt_text", "no_wait", "listen")


@click.command("verify")
@click.argument("source", metavar="[FILE|basic]", required=False)
@model_option
@click.option("--ask", metavar="TEXT", help="Ask this instead, aloud.")
@click.option("--audio", metavar="FILE", type=click.Path(path_type=Path), help="Ask what is in this recording instead.")
@click.option(
    "--expect",
    multiple=True,
    metavar="WORDS",
    help="Words of a right answer, or several with | of which one is enough; repeat it: all.",
)
@click.option("--voice", metavar="NAME|FILE", help="With --ask or --audio: the agent's voice.")
@click.option("--system-prompt-text", metavar="TEXT", help="With --ask or --audio: the agent's role.")
@click.option("--no-wait", is_flag=True, help="With --ask or --audio: ask at once, not after the agent's greeting.")
@click.option(
    "--listen",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Likewise: listen so long [default: 12].",
)
@click.option("--speaker", metavar="NAME[:MODEL]", help="The synthesiser that asks [default: the file's, or flite].")
@recogniser_option(
    "Who hears the answers [default: this machine's best; for nano grammar, which knows all that it can say]."
)
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Ask each question N times [default: the file's].")
@click.option(
    "--at-least",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Of the answers, to pass each check [default: 0.75].",
)
@click.option("--most-errors", type=click.FloatRange(0), metavar="RATE", help="Word errors of the ear [default: 0.5].")
@click.option("--least-words", type=click.IntRange(1), metavar="N", help="Words of an answer [default: 3].")
@slots_option
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Record each answer there, as `talk --record` does; `report DIR` shows them.",
)
@result_options
@repeatable_sampling_options
def command(source: str | None, json_file: Path | None, quiet: bool, **options: Any) -> None:
    """Verify a model by a round trip: speak to it, recognise what it answers, check both.

    Checks that the answer has words, that its text and its sound hold the expected ones, that a recogniser hears what
    the text says, that it is no silence, loop, noise or tone, and that the live engine and the library say the same.
    Every check is also tried on what must fail it: another answer, silence, noise, a tone, a loop, and the answer of
    the same model with its weights shuffled. A check that passes one of those fails the whole.

    Asks the four questions of the set basic, those of a file (docs/evaluation/prompts.md), or one given by --ask or
    --audio. Exit code 13 for a model that does not pass.
    """
    from personaplex.evaluate.verification.verification import troubles

    check_sampling(options)
    if json_file is not None:
        check_writable(json_file)
    questions = _questions(source, options)
    kept = None
    if options["keep"] is not None:
        kept = KeptAnswers(options["keep"], {"model": options["model"], "mode": "verify"})
    note_blas(quiet=quiet)
    result = _verified(questions, options, kept, quiet)
    show(result, json_file, quiet=quiet)
    if kept is not None:
        note(f"wrote {kept.n} recordings into {options['keep']}", quiet=quiet)
    if found := troubles(result):
        for item in result.items:
            for check, reason in item["failed"].items() if "question" in item else ():
                note(f"{item['question']} (seed {item['seed']}): {check}: {reason}", quiet=quiet)
        raise VerificationError(f"{options['model']} does not pass: {'; '.join(found)}")
    note(f"{options['model']} passes", quiet=quiet)


def _questions(source: str | None, options: dict[str, Any]) -> list[Question]:
    """What is asked. Raises UsageError for options that contradict each other."""
    from personaplex.evaluate.prompts.expectation import Expectation, wordless
    from personaplex.evaluate.prompts.questions import LISTEN_SECONDS, Question, read_questions

    ask, audio = options["ask"], options["audio"]
    speaker = {} if options["speaker"] is None else {"speaker": options["speaker"], "speaker_voice": None}
    if ask is None and audio is None:
        if given := next((name for name in _OF_ONE if options[name]), None):
            raise UsageError(
                f"--{given.replace('_', '-')} goes with --ask or --audio; a file's questions have their own"
            )
        return [dataclasses.replace(question, **speaker) for question in read_questions(source or "basic")]
    if ask is not None and audio is not None:
        raise UsageError("give --ask or --audio, not both")
    if source is not None:
        raise UsageError(f"give {source} or a question of your own (--ask, --audio), not both")
    if ask is not None and wordless([ask]):
        raise UsageError(f"--ask {ask!r} holds no word")
    wanted = tuple(tuple(part.strip() for part in phrases.split("|")) for phrases in options["expect"])
    if empty := wordless(phrase for phrases in wanted for phrase in phrases):
        raise UsageError(f"--expect {empty[0]!r} holds no word")
    return [
        Question(
            name=ask or audio.name,
            say=ask or "",
            audio=audio,
            expectation=Expectation(wanted),
            voice=None if options["voice"] is None else find_voice(options["voice"]),
            prompt=options["system_prompt_text"],
            waits=not options["no_wait"],
            listen_seconds=options["listen"] or LISTEN_SECONDS,
            **speaker,
        )
    ]


def _limits(options: dict[str, Any]) -> Limits:
    from personaplex.evaluate.verification.checks import Limits

    given = {"words": options["least_words"], "errors": options["most_errors"]}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _verified(questions: list[Question], options: dict[str, Any], kept: KeptAnswers | None, quiet: bool) -> Result:
    from personaplex.bench.machine import describe_machine
    from personaplex.evaluate.hearing import check_ear, open_ear
    from personaplex.evaluate.prompts.questions import without_roles
    from personaplex.evaluate.prompts.spoken import Speakers
    from personaplex.evaluate.verification.verification import AT_LEAST, unmeasured, verify
    from personaplex.model import PersonaPlex

    check_ear(options["recogniser"])
    at_least = AT_LEAST if options["at_least"] is None else options["at_least"]
    limits = _limits(options)
    with ExitStack() as stack:
        ear = stack.enter_context(closing(open_ear(options["recogniser"], options["model"])))
        speakers = stack.enter_context(Speakers())
        others = _other_question(questions)
        about = {
            "questions": [question.name for question in questions], "model": options["model"],
            "seed": options["seed"], "seeds": options["seeds"], "sampling": sampling_changes(options),
            "recogniser": ear.name, "limits": dataclasses.asdict(limits), "at_least": at_least,
            "machine": describe_machine(),
        }  # fmt: skip
        _, failures, error = _asked(questions, speakers, (), options)  # one without a sound shows before loading
        if error is not None:
            return unmeasured(about, failures, error)
        model = PersonaPlex.from_pretrained(options["model"])
        if not model.config.prompts:
            note(TALKS_AS_ITSELF, quiet=quiet)
            questions, others = without_roles(questions), without_roles(others)
        asked, failures, _ = _asked([*questions, *others], speakers, model.list_voices(), options)
        return verify(
            model, asked, ear, about,
            limits=limits, at_least=at_least, slots=options["slots"], failures=failures,
            only_controls=[question.name for question in others],
            tell=lambda text: note(text, quiet=quiet),
            keep=None if kept is None else kept.keep,
        )  # fmt: skip


def _other_question(questions: list[Question]) -> list[Question]:
    """One more question where all want the same: its answer is the wrong one to them."""
    from personaplex.evaluate.prompts.questions import read_questions
    from personaplex.evaluate.verification.controls import is_another

    if any(is_another(one, other) for one in questions for other in questions):
        return []
    known = read_questions("basic")
    other = next(other for other in known if all(is_another(one, other) for one in questions))
    one = questions[0]
    return [
        dataclasses.replace(
            other,
            name=f"control: {other.name}",
            voice=one.voice,
            voices=one.voices,
            waits=one.waits,
            listen_seconds=one.listen_seconds,
        )
    ]


def _asked(
    questions: list[Question], speakers: Any, voices: Any, options: dict[str, Any]
) -> tuple[list[Asked], list[Failure], PersonaPlexError | None]:
    from personaplex.evaluate.prompts.evaluation import prepare

    return prepare(questions, speakers, voices, options["seed"], options["seeds"], sampling_changes(options))
