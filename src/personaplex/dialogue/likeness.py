"""How near a held-out phrasing is to the trained ones: many differ from one of them by a "please"."""

from __future__ import annotations

import re
from functools import cache

from personaplex.dialogue.world import HELDOUT, PHRASINGS


def is_new(intent: str, text: str) -> bool:
    """Whether `text`, a held-out phrasing with its slots filled, is more than a word from every trained phrasing.

    One that is a part of a trained phrasing is not new either.
    """
    return any(new and pattern.fullmatch(text) for pattern, new in _held_out(intent))


@cache
def _held_out(intent: str) -> list[tuple[re.Pattern[str], bool]]:
    trained = [phrasing.split() for phrasing in PHRASINGS[intent]]
    return [
        (re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(held))), not any(_near(held.split(), t) for t in trained))
        for held in HELDOUT["phrasings"][intent]
    ]


def _near(held: list[str], trained: list[str]) -> bool:
    if any(trained[i : i + len(held)] == held for i in range(len(trained) - len(held) + 1)):
        return True
    if abs(len(held) - len(trained)) > 1:
        return False
    # The same but for one word that was put in, left out or exchanged.
    same = next(
        (i for i, (a, b) in enumerate(zip(held, trained, strict=False)) if a != b), min(len(held), len(trained))
    )
    rest, other = held[same:], trained[same:]
    return rest[1:] == other[1:] or rest[1:] == other or rest == other[1:]
