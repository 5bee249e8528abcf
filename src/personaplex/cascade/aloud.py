"""A text of any length read aloud: sentence by sentence, each as soon as it is known, and no more of it kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, cast

import numpy as np
import soxr

from personaplex.cascade.engine import Piece, Synthesiser, as_error
from personaplex.cascade.sentences import SentenceSplitter
from personaplex.cascade.speakable import speakable
from personaplex.errors import AudioError, PersonaPlexError, SynthesisError, UsageError
from personaplex.units import SAMPLE_RATE

_WRAPPED = re.compile(r"(?<=\S)\n(?=(\w))")


class Unsaid(NamedTuple):
    """A sentence that could not be said, or not to its end, and why."""

    sentence: str
    error: PersonaPlexError


def read_aloud(
    text: Iterable[str], synthesiser: Synthesiser, who: str, voice: str | None = None, language: str | None = None
) -> Iterator[np.ndarray | Unsaid]:
    """Sound [S] at 24 kHz as it is made, and what could not be said in between; `who` speaks, for messages.

    What is no speech (markup, emoji) is left out. Raises UsageError for an unknown voice or language, AudioError
    for a recording that cannot be a voice, and whatever `text` raises.
    """
    for sentence in _sentences(text):
        if not (said := speakable(sentence)):
            continue
        n_samples = 0
        try:
            with closing(cast(Any, synthesiser.say(said, voice, language))) as pieces:
                for pcm in _at_our_rate(pieces):
                    n_samples += len(pcm)
                    yield pcm
            if not n_samples:
                raise SynthesisError(f"{who} makes no sound of it")
        except (UsageError, AudioError):  # the voice or the language is wrong, so no sentence can be said
            raise
        except Exception as error:  # a synthesiser is somebody else's program
            yield Unsaid(sentence, as_error(error, f"synthesiser {who}"))


def _sentences(text: Iterable[str]) -> Iterator[str]:
    splitter = SentenceSplitter()
    for part in _unwrapped(text):
        yield from splitter.push(part)
    yield from splitter.flush()


def _unwrapped(text: Iterable[str]) -> Iterator[str]:
    """The same, with a space where a line ends within a sentence: the next begins with a small letter."""
    before = kept = ""
    for part in text:
        joined = _WRAPPED.sub(lambda end: " " if end[1].islower() else "\n", before + kept + part)[len(before) :]
        kept = "\n" if joined.endswith("\n") else ""  # what follows decides
        given = joined.removesuffix(kept)
        before = given[-1:] or before
        yield given
    yield kept


def _at_our_rate(pieces: Iterator[Piece]) -> Iterator[np.ndarray]:
    resampler: soxr.ResampleStream | None = None
    for piece in pieces:
        pcm = np.asarray(piece.pcm, np.float32)
        if not np.isfinite(pcm).all():
            raise SynthesisError("its sound holds samples that are not numbers (NaN or infinity)")
        if piece.rate != SAMPLE_RATE:
            resampler = resampler or soxr.ResampleStream(piece.rate, SAMPLE_RATE, 1, dtype="float32")
            pcm = resampler.resample_chunk(pcm)
        if len(pcm):
            yield pcm
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
