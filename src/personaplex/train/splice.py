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

import numpy as np

from personaplex.train.bank import Bank

CANDIDATES = 8
"""Clips that are looked at for each stretch of words; the one that fits best in time is taken."""

END = -1


class Splicer:
    """Says the lines of a bank's agents from pieces. `clips` are the bank's clips of agents."""

    def __init__(self, bank: Bank, clips: Iterable[int]) -> None:
        self._bank = bank
        self._stretches: dict[int, list[tuple[int, int]]] = {}
        # Where a stretch of words is said after the same word, and where it is said at all: (clip, first word).
        self._alike: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        self._anywhere: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        of_voice: dict[int, list[int]] = defaultdict(list)
        for clip in clips:
            of_voice[int(bank.voices[clip])].append(clip)
        for voice, own in of_voice.items():
            self._add(voice, own)

    def _add(self, voice: int, clips: list[int]) -> None:
        texts = {clip: tuple(map(int, self._bank.words_of(clip)[:, 0])) for clip in clips}
        follows: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for text in set(texts.values()):
            for i, word in enumerate((*text, END)):
                follows[text[:i]].add(word)
        for clip, text in texts.items():
            open_before = [len(follows[text[:i]]) > 1 for i in range(len(text))]
            cuts = [i for i in range(1, len(text)) if open_before[i] or (open_before[i - 1] and i > 1)]
            bounds = [0, *cuts, len(text)]
            self._stretches[clip] = list(pairwise(bounds))
            for begin, end in self._stretches[clip]:
                before = text[begin - 1] if begin else END
                self._alike[voice, before, *text[begin:end]].append((clip, begin))
                self._anywhere[voice, *text[begin:end]].append((clip, begin))

    def say(self, rng: np.random.Generator, clip: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """The clip's line anew: codes [F, 8], and each word (index in the vocabulary) with the frame it begins in."""
        bank, own = self._bank, self._bank.words_of(clip)
        codes: list[np.ndarray] = []
        words: list[tuple[int, int]] = []
        n_frames = phase = 0
        for begin, end in self._stretches[clip]:
            donor, first = self._donor(rng, clip, begin, end, phase)
            said, after = bank.words_of(donor), first + end - begin
            start = int(said[first, 1]) if begin else 0
            if end < len(own) and after < len(said):
                stop, phase = int(said[after, 1]), int(said[after, 3])
            else:
                stop, phase = int(said[after - 1, 2]) + 1, 0
            stop = max(stop, start)
            words += [(int(word), n_frames + int(at) - start) for word, at, _, _ in said[first:after]]
            codes.append(bank.clip(donor)[start:stop])
            n_frames += stop - start
        codes.append(bank.clip(clip)[int(own[-1, 2]) + 1 :])
        return np.concatenate(codes), words

    def _donor(self, rng: np.random.Generator, clip: int, begin: int, end: int, phase: int) -> tuple[int, int]:
        """A clip that says the stretch, and its first word there: one that begins at about `phase` within a frame."""
        voice, text = int(self._bank.voices[clip]), self._bank.words_of(clip)[:, 0].tolist()
        alike = self._alike[voice, text[begin - 1] if begin else END, *text[begin:end]]
        if len(alike) == 1 and begin:
            alike = self._anywhere[voice, *text[begin:end]]
        drawn = [alike[i] for i in rng.integers(len(alike), size=CANDIDATES if begin else 1)]
        gaps = [abs(int(self._bank.words_of(donor)[first, 3]) - phase) for donor, first in drawn]
        return drawn[gaps.index(min(gaps))]
