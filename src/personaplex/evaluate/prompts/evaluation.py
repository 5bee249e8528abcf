"""`eval prompts` in one call: a model, a set of questions, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from personaplex.conversation import Settings
from personaplex.errors import ConversationError, PersonaError, PersonaPlexError
from personaplex.evaluate.hearing import Ear
from personaplex.evaluate.prompts.asking import Answer, Asked, Backend, ask_all
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.prompts.spoken import Speakers
from personaplex.evaluate.prompts.table import Outcome, outcome, rows
from personaplex.evaluate.result import Failure, Result

KIND = "prompts"
Tell = Callable[[str], None]


def seeds_of(question: Question, seed: int, n: int | None) -> Sequence[int]:
    """`n` seeds from `seed` on; None takes the question's own, moved by `seed`, or one. Beyond the last is 0."""
    own = range(n or 1) if n is not None or not question.seeds else question.seeds
    return [(each + seed) % (1 << 63) for each in own]


def prepare(
    questions: Sequence[Question],
    speakers: Speakers,
    voices: Sequence[str],
    seed: int,
    n_seeds: int | None,
    sampling: Mapping[str, float | int | bool],
) -> tuple[list[Asked], list[Failure], PersonaPlexError | None]:
    """Every question with its sound; one that has none (a broken file, a voice that is missing) is a failure.

    If no question has a sound, what was wrong with the first comes with them.
    `voices` are the model's, empty while they are not known; `sampling` comes before a persona's. Raises PersonaError
    for a voice that the model does not have.
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
    return made, failures, None if made else first


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
    """Ask, listen, count. What cannot be asked, or heard, is a failure and counts as not right.

    `failures` are those so far. When nothing could be measured, the result's `error` says so.
    """
    outcomes, failed = list[Outcome](), list(failures)
    n = sum(len(each.seeds) for each in asked)
    for i, answer in enumerate(ask_all(backend, asked, slots), 1):
        found = answer if isinstance(answer, Failure) else _heard(answer, ear)
        if isinstance(found, Failure):
            failed.append(found)
            tell(f"{i} of {n}: {found.item}: not measured: {found.reason}")
        else:
            outcomes.append(found)
            tell(f"{i} of {n}: {found.name}: {found.said or '(nothing)'}")
    counted = {each.question.name: len(each.seeds) for each in asked}
    for failure in failures:
        name = failure.item.rsplit(" (seed", 1)[0]
        counted[name] = counted.get(name, 0) + 1
    error = None
    if failed and not outcomes:
        error = ConversationError(f"no answer could be measured; the first: {failed[0].reason}")
    return Result(KIND, about, rows(outcomes, counted), [o.as_json() for o in outcomes], failed, error)


def _heard(answer: Answer, ear: Ear | None) -> Outcome | Failure:
    try:
        return outcome(answer, None if ear is None else ear.hear(answer.sound))
    except PersonaPlexError as error:
        return Failure(answer.name, str(error))
