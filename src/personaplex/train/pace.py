"""How fast a voice speaks: how long it takes for each word, drawn from what was recorded of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from personaplex.train.bank import Bank
from personaplex.train.clips import PHASES

ANYBODY = -1


class Timed(NamedTuple):
    """A word on the clock: the frame it begins in, its last frame, how far into the first it begins in 16ths."""

    first: int
    last: int
    phase: int


class Pace:
    """Times words as a bank's voices said them. `clips` are the clips to learn from, those of agents.

    The last word of a line takes longer than the same word within one, so they are told apart.
    """

    def __init__(self, bank: Bank, clips: Iterable[int]) -> None:
        self._of_word: dict[tuple[int, str, bool], list[int]] = defaultdict(list)
        self._of_length: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
        self._lengths: dict[tuple[int, bool], list[int]] = {}
        for clip in clips:
            voice, words = int(bank.voices[clip]), bank.words_of(clip).tolist()
            begins = [first * PHASES + phase for _, first, _, phase in words]
            ends = [*begins[1:], (words[-1][2] + 1) * PHASES]
            for i, (word, *_) in enumerate(words):
                text, final, steps = bank.vocabulary[word], i + 1 == len(words), ends[i] - begins[i]
                self._of_word[voice, text, final].append(steps)
                for speaker in (voice, ANYBODY):
                    self._of_length[speaker, len(text), final].append(steps)
        for speaker, length, final in sorted(self._of_length):
            self._lengths.setdefault((speaker, final), []).append(length)

    def steps(self, rng: np.random.Generator, voice: int, word: str, *, final: bool) -> int:
        """How long the voice takes for a word this time, in 16ths of a frame.

        As it once took for this word; for one that it never said, as for one of as many letters, or of nearly as many
        and the rest in proportion.
        """
        if recorded := self._of_word.get((voice, word, final)):
            return recorded[rng.integers(len(recorded))]
        speaker = voice if (voice, final) in self._lengths else ANYBODY
        length = min(self._lengths[speaker, final], key=lambda known: abs(known - len(word)))
        recorded = self._of_length[speaker, length, final]
        return max(1, round(recorded[rng.integers(len(recorded))] * len(word) / length))

    def timed(self, rng: np.random.Generator, voice: int, text: str) -> tuple[list[Timed], int]:
        """Each word of a text on the clock from frame 0, and the frame after the last one."""
        words, said, at = text.split(), [], 0
        for i, word in enumerate(words):
            end = at + self.steps(rng, voice, word, final=i + 1 == len(words))
            said.append(Timed(at // PHASES, (end - 1) // PHASES, at % PHASES))
            at = end
        return said, -(-at // PHASES)
