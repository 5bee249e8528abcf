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
from typing import NamedTuple

import numpy as np

from personaplex.train.bank import Bank

CANDIDATES = 8
"""Clips that are looked at for each stretch of words; the one that fits best in time is taken."""

END = -1


class Place(NamedTuple):
    """Where a stretch of words begins: a clip, the word in it, and how far into its frame that begins in 16ths."""

    clip: int
    word: int
    phase: int


class Splicer:
    """Says the lines of a bank's agents from pieces. `clips` are the bank's clips of agents."""

    def __init__(self, bank: Bank, clips: Iterable[int]) -> None:
        self._bank = bank
        self._stretches: dict[int, list[tuple[int, int]]] = {}
        # Where a stretch of words is said after the same word, and where it is said at all.
        self._alike: dict[tuple[int, ...], list[Place]] = defaultdict(list)
        self._anywhere: dict[tuple[int, ...], list[Place]] = defaultdict(list)
        of_voice: dict[int, list[int]] = defaultdict(list)
        for clip in clips:
            of_voice[int(bank.voices[clip])].append(clip)
        for voice, own in of_voice.items():
            self._add(voice, own)

    def _add(self, voice: int, clips: list[int]) -> None:
        texts = {clip: tuple(self._bank.words_of(clip)[:, 0].tolist()) for clip in clips}
        follows: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for text in set(texts.values()):
            for i, word in enumerate((*text, END)):
                follows[text[:i]].add(word)
        for clip, text in texts.items():
            open_before = [len(follows[text[:i]]) > 1 for i in range(len(text))]
            cuts = [i for i in range(1, len(text)) if open_before[i] or (open_before[i - 1] and i > 1)]
            bounds = [0, *cuts, len(text)]
            self._stretches[clip] = list(pairwise(bounds))
            phases = self._bank.words_of(clip)[:, 3].tolist()
            for begin, end in self._stretches[clip]:
                before, place = text[begin - 1] if begin else END, Place(clip, begin, phases[begin])
                self._alike[voice, before, *text[begin:end]].append(place)
                self._anywhere[voice, *text[begin:end]].append(place)

    def say(self, rng: np.random.Generator, clip: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The clip's line anew: codes [F, 8], and each word (index in the vocabulary) with the frame it begins in."""
        bank, text = self._bank, self._bank.words_of(clip)[:, 0].tolist()
        codes: list[np.ndarray] = []
        words: list[tuple[int, int]] = []
        n_frames = phase = 0
        for begin, end in self._stretches[clip]:
            place = self._place(rng, int(bank.voices[clip]), text, begin, end, phase)
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

    def _place(self, rng: np.random.Generator, voice: int, text: list[int], begin: int, end: int, phase: int) -> Place:
        """Where the voice says the words from `begin` to `end`, from about `phase` within a frame on."""
        alike = self._alike[voice, text[begin - 1] if begin else END, *text[begin:end]]
        if len(alike) == 1 and begin:
            alike = self._anywhere[voice, *text[begin:end]]
        drawn: list[Place] = [alike[i] for i in rng.integers(len(alike), size=CANDIDATES if begin else 1).tolist()]
        return min(drawn, key=lambda place: abs(place.phase - phase))
