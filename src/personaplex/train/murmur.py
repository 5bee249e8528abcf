"""The agent's voice saying something else: what an answer sounds like where its words are all that is to be learned.

A model that hears its own voice learns to read from it which clip it is, and with that the words that are still to
come; once it speaks for itself, there is no clip to read. So where text is learned from, the agent's line is heard as
other lines of its voice, which tell nothing. The words come as fast as the voice says them, and can be any words: of a
name that was made up a moment ago there is no sound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from personaplex.train.bank import Bank
from personaplex.train.clips import PHASES, TAIL_FRAMES

KNOWN = 3
"""Times that a voice must have said a word for its own pace to be taken, or anybody for anybody's."""


class Murmur:
    """Says lines in a bank's voices without their sound. `clips` are the bank's clips of agents."""

    def __init__(self, bank: Bank, clips: Sequence[int]) -> None:
        self._bank = bank
        self._clips: dict[int, list[int]] = defaultdict(list)
        lasted: dict[tuple[int, int], list[int]] = defaultdict(list)
        by_letters: dict[int, list[int]] = defaultdict(list)
        voices = bank.voices.tolist()
        for clip in clips:
            self._clips[voices[clip]].append(clip)
            words = bank.words_of(clip).tolist()
            begins = [first * PHASES + phase for _, first, _, phase in words]
            ends = [*begins[1:], (words[-1][2] + 1) * PHASES]
            for (word, *_), begin, end in zip(words, begins, ends, strict=True):
                lasted[voices[clip], word].append(end - begin)
                lasted[-1, word].append(end - begin)
                by_letters[len(bank.vocabulary[word])].append(end - begin)
        self._number = {word: i for i, word in enumerate(bank.vocabulary)}
        self._lasts = {at: _frames(steps) for at, steps in lasted.items() if len(steps) >= KNOWN}
        known = sorted(by_letters)
        # Between and beyond the lengths that the bank knows: along the line through all of them.
        medians = [float(np.median(by_letters[n])) for n in known]
        slope, start = np.polyfit(known, medians, 1) if len(known) > 1 else (0.0, medians[0])
        self._by_letters = [max(1, round(float(start + slope * n) / PHASES)) for n in range(64)]

    def frames_of(self, voice: int, word: str) -> int:
        """How many frames the voice takes for a word: always as many, so that the next one's time can be known."""
        number = self._number.get(word, -1)
        own = self._lasts.get((voice, number))
        return own or self._lasts.get((-1, number)) or self._by_letters[min(len(word), 63)]

    def say(self, rng: np.random.Generator, voice: int, text: str) -> tuple[np.ndarray, list[tuple[str, int]]]:
        """Codes [F, 8] of something else, and each word of `text` with the frame it begins in."""
        words, at = [], 0
        for word in text.split():
            words.append((word, at))
            at += self.frames_of(voice, word)
        return self._sound(rng, voice, at + TAIL_FRAMES), words

    def _sound(self, rng: np.random.Generator, voice: int, n_frames: int) -> np.ndarray:
        """It begins as a line does and ends as one does."""
        clips, parts, length = self._clips[voice], [], 0
        while length < n_frames:
            parts.append(self._bank.clip(clips[rng.integers(len(clips))]))
            length += len(parts[-1])
        whole = np.concatenate(parts)
        half = n_frames // 2
        return np.concatenate([whole[:half], whole[len(whole) - (n_frames - half) :]])


def _frames(steps: Sequence[int]) -> int:
    return max(1, round(float(np.median(steps)) / PHASES))
