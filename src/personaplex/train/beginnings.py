"""A line begun as any other that begins alike, so that its first codes do not tell which line it is.

What a model says itself knows nothing of the words to come. But clips of it are finite, and each is heard some hundred
times: a model that knows a clip again by the noise in it can read from that what comes. So up to each word that holds
a fact any clip is heard of the same voice which has said the same words at the same times until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from personaplex.train.bank import Bank


class Beginnings:
    """Knows which of a bank's `clips` begin alike. Text is `lead` frames ahead of sound, so clips part before it."""

    def __init__(self, bank: Bank, clips: Sequence[int] | np.ndarray, lead: int) -> None:
        self._bank, self._lead = bank, lead
        own = np.asarray(clips, np.int64)
        first, n_words = bank.word_begins[own], np.diff(bank.word_begins)[own]
        numbers, starts = (np.asarray(bank.words[:, column], np.uint64) for column in (0, 1))
        # A number for all that was heard before a word: voice, words and the times they began, this word's with them.
        marks = np.zeros(len(bank.words), np.uint64)
        heard = _mix(np.zeros(len(own), np.uint64), bank.voices[own].astype(np.uint64))
        for at in range(int(n_words.max(initial=0))):
            longer = n_words > at
            word = first[longer] + at
            marks[word] = _mix(heard[longer], starts[word])
            heard[longer] = _mix(marks[word], numbers[word])
        self._words = np.repeat(first - np.cumsum(n_words) + n_words, n_words) + np.arange(n_words.sum())
        self._clips = np.repeat(own, n_words)
        order = np.argsort(marks[self._words], kind="stable")
        self._words, self._clips = self._words[order], self._clips[order]
        ordered = marks[self._words]
        self._begins = np.searchsorted(ordered, marks, "left").astype(np.int32)
        self._counts = np.searchsorted(ordered, marks, "right").astype(np.int32) - self._begins

    def alike(self, clip: int, word: int) -> np.ndarray:
        """The clips that begin like this one up to its `word`, itself among them."""
        at = self._bank.word_begins[clip] + word
        return self._clips[self._begins[at] : self._begins[at] + self._counts[at]]

    def say(self, rng: np.random.Generator, clip: int, parted: Iterable[int]) -> np.ndarray:
        """Codes [F, 8] of a clip; before each of the `parted` words those of any clip that begins alike."""
        codes, words, begin = self._bank.clip(clip).copy(), self._bank.words_of(clip), 0
        for word in parted:
            end = max(int(words[word, 1]) - self._lead, begin)
            if end > begin and len(others := self.alike(clip, word)) > 1:
                codes[begin:end] = self._bank.clip(int(others[rng.integers(len(others))]))[begin:end]
            begin = end
        return codes


def _mix(mark: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Two numbers as one, in which every bit counts (the steps of MurmurHash3's finaliser)."""
    mixed = (mark ^ (value + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return mixed ^ (mixed >> np.uint64(33))
