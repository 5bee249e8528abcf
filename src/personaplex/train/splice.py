"""An agent's lines said anew from the clips of its voice, so that how a line begins does not tell how it ends.

A clip of "that is forty" sounds like no other from its first code on. A model that hears its own voice learns to know
the clip, and to read the number off it instead of working it out; once it speaks for itself its first codes are drawn,
and the answer is whatever they happen to belong to. So wherever a voice's lines part ("that is", then any number), the
words before, the word itself and the words after come from clips that are drawn independently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np

from personaplex.dialogue import Line
from personaplex.train.bank import Bank, Key
from personaplex.train.partings import Partings

CANDIDATES = 8
"""Clips that are looked at for each stretch of words; the one that fits best in time is taken."""

END, UNKNOWN = -1, -2


class Place(NamedTuple):
    """Where a stretch of words begins: a clip, the word in it, and how far into its frame that begins in 16ths."""

    clip: int
    word: int
    phase: int


class Splicer:
    """Says lines of a bank's agents from pieces. `clips` are the bank's clips of agents.

    A line that no clip holds can be said too, where its values come from other lines: any name with any company.
    """

    def __init__(self, bank: Bank, clips: Iterable[int]) -> None:
        self._bank = bank
        self._number = {word: i for i, word in enumerate(bank.vocabulary)}
        # Where a stretch of words is said after the same word, and where it is said at all.
        self._alike: dict[tuple[int, ...], list[Place]] = defaultdict(list)
        self._anywhere: dict[tuple[int, ...], list[Place]] = defaultdict(list)
        lines = {clip: (int(bank.voices[clip]), Line(*cast(tuple[str, Key, str], bank.lines[clip]))) for clip in clips}
        self._partings = Partings(lines.values())
        for clip, (voice, line) in lines.items():
            text, phases = self._numbers(line), bank.words_of(clip)[:, 3].tolist()
            for begin, end in self._stretches(voice, line):
                before, place = text[begin - 1] if begin else END, Place(clip, begin, phases[begin])
                self._alike[voice, before, *text[begin:end]].append(place)
                self._anywhere[voice, *text[begin:end]].append(place)

    def _numbers(self, line: Line) -> tuple[int, ...]:
        return tuple(self._number.get(word, UNKNOWN) for word in line.text.split())

    def _stretches(self, voice: int, line: Line) -> list[tuple[int, int]]:
        return list(pairwise([0, *self._partings.cuts(voice, line), len(line.text.split())]))

    def can_say(self, voice: int, line: Line) -> bool:
        """Whether the voice has clips of all its pieces."""
        text = self._numbers(line)
        return all(
            (voice, *text[begin:end]) in self._anywhere if begin else (voice, END, *text[begin:end]) in self._alike
            for begin, end in self._stretches(voice, line)
        )

    def say(self, rng: np.random.Generator, clip: int, line: Line) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """A line anew: codes [F, 8], and each word (index in the vocabulary) with the frame it begins in.

        `clip` holds that line, or the same wording with other values.
        """
        bank, voice, text = self._bank, int(self._bank.voices[clip]), self._numbers(line)
        codes: list[np.ndarray] = []
        words: list[tuple[int, int]] = []
        n_frames = phase = 0
        for begin, end in self._stretches(voice, line):
            place = self._place(rng, voice, text, begin, end, phase)
            said, first = bank.words_of(place.clip).tolist(), place.word
            after = first + end - begin
            start = said[first][1] if begin else 0
            stop, phase = said[after - 1][2] + 1, 0
            if end < len(text) and after < len(said):
                stop, phase = said[after][1], said[after][3]
            words += [(word, n_frames + at - start) for word, at, _, _ in said[first:after]]
            codes.append(bank.clip(place.clip)[start : max(stop, start)])
            n_frames += len(codes[-1])
        codes.append(bank.clip(clip)[int(bank.words_of(clip)[-1, 2]) + 1 :])
        return np.concatenate(codes), words

    def _place(
        self, rng: np.random.Generator, voice: int, text: tuple[int, ...], begin: int, end: int, phase: int
    ) -> Place:
        """Where the voice says the words from `begin` to `end`, from about `phase` within a frame on."""
        alike = self._alike.get((voice, text[begin - 1] if begin else END, *text[begin:end]), [])
        if len(alike) <= 1 and begin:
            alike = self._anywhere[voice, *text[begin:end]]
        drawn: list[Place] = [alike[i] for i in rng.integers(len(alike), size=CANDIDATES if begin else 1).tolist()]
        return min(drawn, key=lambda place: abs(place.phase - phase))
