"""The words of a text as they are spoken: what answers, recognisers' texts and loops are compared by."""

from __future__ import annotations

import re
from collections.abc import Sequence

from personaplex.dialogue.numbers import SPOKEN

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|(?<![^\W_])\d+(?=(?:am|pm)?\b)")
"""Letters, or digits that stand alone: 7, 7:30 and 7pm hold a seven, x7y does not."""


def words_said(text: str) -> list[str]:
    """The words of a text in lower case, whole numbers below 100 as they are spoken: "At 7:30, O'Neil" is four words.

    A model writes what it says in either way, and so do recognisers.
    """
    words = _WORD.findall(text.lower().replace("’", "'"))
    return [part for word in words for part in (_spoken(word) if word.isdigit() else [word])]


def _spoken(digits: str) -> list[str]:
    value = int(digits) if len(digits) <= 2 else None
    if value is None or (len(digits) == 2 and value < 10):
        return [] if digits == "00" else [digits]  # 7:00 is said as 7
    return SPOKEN[value].split()


def holds(words: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the words of `phrase` stand in `words`, one behind the other: "part" is not in "party"."""
    n = len(phrase)
    return any(list(words[i : i + n]) == list(phrase) for i in range(len(words) - n + 1))
