"""The test of the model in the package, by its name: phrasings, facts and voices that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from personaplex.evaluate.nano import outcome, table
from personaplex.evaluate.nano.conversation import Conversation, converse
from personaplex.evaluate.nano.items import TESTS, Item, make_items
from personaplex.evaluate.nano.recogniser import hear_all, network
from personaplex.evaluate.result import Result
from personaplex.model import PersonaPlex

NAME = "nano"
PER_ROW = 4
"""Items for each row of the table: a look, of some minutes on two cores. nano's card has 100."""
USUAL_TESTS = TESTS[:-1]
"""All but the hours of long calls."""


def evaluate(
    model: PersonaPlex,
    per_row: int,
    seed: int,
    about: Mapping[str, Any],
    *,
    tests: Sequence[str] = USUAL_TESTS,
    batch: int = 16,
    listens: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Result:
    """Make the items, talk through them, have a recogniser hear the answers, count: `scripts/evaluate_nano.py` in one.

    Raises UsageError for an unknown test, SynthesisError without a synthesiser, BackendError without a recogniser.
    """
    items, clips = make_items(per_row, seed, tests)
    tell(f"{len(items)} conversations")
    talks = {talk.number: talk for talk in converse(model, items, clips, batch=batch, pinned_frames=256, say=tell)}
    listened = [item.number for item in items if item.listened] if listens else []
    heard: dict[int, list[str]] = {}
    if listened:
        from personaplex.dialogue import grammar

        sounds = [outcome.sound_of_answer(talks[number]) for number in listened]
        heard = dict(zip(listened, hear_all(sounds, network(grammar())), strict=True))
    entries = [_entry(item, talks[item.number], heard.get(item.number)) for item in items]
    return Result("prompts", about, table.rows(items, talks, heard), entries)


def _entry(item: Item, talk: Conversation, heard: Sequence[str] | None) -> dict[str, Any]:
    return {
        "item": item.number,
        "test": item.test,
        "group": item.group,
        "voice": item.voice,
        "asked": [turn.text for turn in item.turns],
        "said": outcome.answer(talk, len(item.turns) - 1),
        "right": table.right((item, talk)) if item.expected else None,
        "expected": item.expected,
        "heard": None if heard is None else " ".join(heard),
    }
