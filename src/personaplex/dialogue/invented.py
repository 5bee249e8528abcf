"""Invented names sound like known ones and are none: they must be read in the prompt, for nobody can remember them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

import numpy as np

_LETTERS = range(3, 11)


class Inventor:
    """Makes up words whose letters follow each other as in `known`; never a known word, nor a `forbidden` one."""

    def __init__(self, known: Iterable[str], forbidden: Collection[str]) -> None:
        known = sorted(set(known))
        self._taken = {*known, *forbidden}
        self._next: dict[str, list[str]] = defaultdict(list)
        for word in known:
            letters = f"  {word} "
            for i in range(len(word) + 1):
                self._next[letters[i : i + 2]].append(letters[i + 2])

    def word(self, rng: np.random.Generator) -> str:
        """A word of 3 to 10 letters."""
        while True:
            letters = "  "
            while len(letters) == 2 or letters[-1] != " ":
                after = self._next[letters[-2:]]
                letters += after[rng.integers(len(after))]
            word = letters.strip()
            if len(word) in _LETTERS and word not in self._taken:
                return word
