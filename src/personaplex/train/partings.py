"""Where the lines of a voice part: after "that is" any number may follow, after "that is forty" a few.

At these words a line is said from pieces (see `splice`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from personaplex.dialogue import Line, phrases

_END = ""

Words = tuple[str, ...]


class Partings:
    """Knows the lines of every voice. `lines` are pairs of voice and line."""

    def __init__(self, lines: Iterable[tuple[int, Line]]) -> None:
        # What may follow a beginning: of a voice's lines, and of what a slot of its lines can hold.
        self._follows: dict[tuple[int, str, Words], set[str]] = defaultdict(set)
        for voice, line in dict.fromkeys(lines):
            self._learn(voice, "", line.text)
            for slot, words in phrases(line):
                if slot:
                    self._learn(voice, slot, words)

    def _learn(self, voice: int, slot: str, text: str) -> None:
        words = tuple(text.split())
        for i, word in enumerate((*words, _END)):
            self._follows[voice, slot, words[:i]].add(word)

    def cuts(self, voice: int, line: Line) -> list[int]:
        """The words (counted from 0) at which a line is cut: around what fills a slot, and where lines or values part.

        The line need not be one of the voice's.
        """
        cuts, at = set(self._within(voice, "", line.text)), 0
        for slot, words in phrases(line):
            n = len(words.split())
            cuts |= {at, at + n}
            if slot:
                cuts |= {at + i for i in self._within(voice, slot, words)}
            at += n
        return sorted(cuts - {0, at})

    def _within(self, voice: int, slot: str, text: str) -> Iterator[int]:
        """Before and after each word that might be another one."""
        words = tuple(text.split())
        parts = [len(self._follows.get((voice, slot, words[:i]), ())) > 1 for i in range(len(words))]
        return (i for i in range(1, len(words)) if parts[i] or (parts[i - 1] and i > 1))
