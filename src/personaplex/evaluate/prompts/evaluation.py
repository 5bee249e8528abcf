"""`eval prompts` in one call: a model, a set of questions, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from personaplex.conversation import Settings
from personaplex.errors import PersonaError, PersonaPlexError
from personaplex.evaluate.hearing import Ear
from personaplex.evaluate.prompts.asking import Answer, Asked, Backend, ask_all
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.prompts.spoken import Speakers
from personaplex.evaluate.prompts.table import Outcome, outcome, rows
from personaplex.evaluate.result import Failure, Result

Tell = Callable[[str], None]


def seeds_of(question: Question, seed: int, n: int | None) -> Sequence[int]:
    """`n` seeds from `seed` on; None takes the question's own, moved by `seed` - 1, or one. Beyond the last is 0."""
    moved = range(seed, seed + (n or 1)) if n is not None or not question.seeds else question.seeds
    by = 0 if isinstance(moved, range) else seed - 1
    return [(own + by) % (1 << 63) for own in moved]


def prepare(
    questions: Sequence[Question],
    speakers: Speakers,
    voices: Sequence[str],
    seed: int,
    n_seeds: int | None,
    sampling: Mapping[str, float | int | bool],
) -> tuple[list[Asked], list[Failure]]:
    """Every question with its sound; one that has none (a broken file, a voice that is missing) is a failure.

    `voices` are the model's, empty while they are not known; `sampling` comes before a persona's. Raises PersonaError
    for a voice that the model does not have, and what was wrong with the first, if no question has a sound.
    """
    made, failures, first = list[Asked](), list[Failure](), None
    for question in questions:
        seeds = seeds_of(question, seed, n_seeds)
        _check_voice(question, voices)
        try:
            pcm = speakers.sound(question)
        except PersonaPlexError as error:
            first = first or error
            failures += [Failure(f"{question.name} (seed {seed})", str(error)) for seed in seeds]
            continue
        made.append(Asked(question, pcm, partial(_settings, question, voices, sampling), seeds))
    if not made and first is not None:
        raise first
    return made, failures


def _check_voice(question: Question, voices: Sequence[str]) -> None:
    voice = question.voice_of(voices)
    if voice and voices and voice not in voices and not Path(voice).suffix:
        where = f"{question.where}: " if question.where else ""
        raise PersonaError(f"{where}unknown voice {voice!r}; this model has {', '.join(voices)}, or name a file")


def _settings(
    question: Question, voices: Sequence[str], sampling: Mapping[str, float | int | bool], seed: int
) -> Settings:
    changes = {**question.sampling, **sampling}
    return Settings(question.voice_of(voices), question.prompt, seed, changes or None)


def evaluate(
    backend: Backend,
    asked: Sequence[Asked],
    slots: int,
    ear: Ear | None,
    about: Mapping[str, Any],
    failures: Sequence[Failure] = (),
    tell: Tell = lambda _: None,
) -> Result:
    """Ask, listen, count. What cannot be asked is a failure and counts as not right; `failures` are those so far."""
    outcomes, failed = list[Outcome](), list(failures)
    n = sum(len(each.seeds) for each in asked)
    for i, answer in enumerate(ask_all(backend, asked, slots), 1):
        if isinstance(answer, Answer):
            outcomes.append(outcome(answer, None if ear is None else ear.hear(answer.sound)))
            tell(f"{i} of {n}: {answer.name}: {outcomes[-1].said or '(nothing)'}")
        else:
            failed.append(answer)
            tell(f"{i} of {n}: {answer.item}: not measured: {answer.reason}")
    counted = {each.question.name: len(each.seeds) for each in asked}
    for failure in failures:
        name = failure.item.rsplit(" (seed", 1)[0]
        counted[name] = counted.get(name, 0) + 1
    return Result("prompts", about, rows(outcomes, counted), [o.as_json() for o in outcomes], failed)
