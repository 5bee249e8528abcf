"""What a synthesiser said: samples, and when each word and each phone was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Word(NamedTuple):
    """A word as written, and its samples [start, end)."""

    text: str
    start: int
    end: int


class Phone(NamedTuple):
    """A label of `PHONES`, and its samples [start, end)."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class Utterance:
    """float32 [S] at 24 kHz, one `Word` per word of the text, and the phones without gaps, silence included."""

    pcm: np.ndarray
    words: tuple[Word, ...]
    phones: tuple[Phone, ...]


class Segment(NamedTuple):
    """A phone as an engine reports it: its own name for it, seconds, and the index of its word (-1 between words)."""

    name: str
    start: float
    end: float
    word: int


class Raw(NamedTuple):
    """What an engine hands over: float32 [S] at `rate` Hz, and its segments."""

    pcm: np.ndarray
    rate: int
    segments: list[Segment]
