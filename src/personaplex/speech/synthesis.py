"""A text and a speaker in, samples and their words and phones out."""

from __future__ import annotations

import re

import numpy as np
import soxr

from personaplex.errors import SynthesisError
from personaplex.speech import espeak, flite
from personaplex.speech.phones import label
from personaplex.speech.speaker import Speaker
from personaplex.speech.utterance import Phone, Segment, Utterance, Word
from personaplex.units import SAMPLE_RATE

MARGIN_SAMPLES = 720
"""Silence before the first phone and after the last: 30 ms."""

SPEECH_DBFS = -23.0
"""Level of what is said, as the mean power of its blocks that are not pauses."""

PEAK = 0.95

_ENGINES = {"flite": flite.synthesise, "espeak": espeak.synthesise}
_LETTER_A = {"flite": "ay", "espeak": "[['eI]]"}
_BLOCK = 480


def say(speaker: Speaker, text: str) -> Utterance:
    """Say `text` (words of a-z and apostrophes between blanks; single letters are spelt) as `speaker`.

    flite gives the same samples for the same speaker and text; espeak's flutter runs on from one call to the next.
    Raises SynthesisError when the synthesiser is not installed or the text holds anything else.
    """
    words = text.split()
    if not words or not all(re.fullmatch(r"[a-z']*[a-z][a-z']*", word) for word in words):
        raise SynthesisError(f"cannot say {text!r}; expected words of the letters a-z and apostrophes between blanks")
    tokens = [
        _LETTER_A[speaker.engine] if word == "a" and _is_spelt(words, i) else word for i, word in enumerate(words)
    ]
    # Said slower and lower by the warp, then played faster by it: resonances move, pitch and length do not.
    warp = speaker.formant
    raw = _ENGINES[speaker.engine](speaker.voice, tokens, speaker.pitch / warp, speaker.range, warp / speaker.rate)
    rate = raw.rate * warp
    pcm = soxr.resample(raw.pcm, rate, SAMPLE_RATE)
    phones, spans = _times(raw.segments, len(words), len(pcm), SAMPLE_RATE / warp, speaker)
    return _trimmed(pcm, words, spans, phones)


def _is_spelt(words: list[str], at: int) -> bool:
    """Whether the "a" here is a letter: in a row of single letters with another than the words "a" and "i"."""
    first, last = at, at + 1
    while first > 0 and len(words[first - 1]) == 1:
        first -= 1
    while last < len(words) and len(words[last]) == 1:
        last += 1
    return not set(words[first:last]) <= {"a", "i"}


def _times(
    segments: list[Segment], n_words: int, n_samples: int, rate: float, speaker: Speaker
) -> tuple[list[Phone], list[tuple[int, int]]]:
    """Phones and the span of each word in samples; adjoining silences become one."""
    phones: list[Phone] = []
    spans: list[tuple[int, int] | None] = [None] * n_words
    for segment in segments:
        start, end = (min(max(round(t * rate), 0), n_samples) for t in (segment.start, segment.end))
        name = label(segment.name, speaker.engine)
        if end <= start:
            continue
        if name == "sil" and phones and phones[-1].label == "sil":
            phones[-1] = Phone(name, phones[-1].start, end)
        else:
            phones.append(Phone(name, start, end))
        if segment.word >= 0:
            before = spans[segment.word]
            spans[segment.word] = (before[0] if before else start, end)
    return phones, _filled(spans)


def _filled(spans: list[tuple[int, int] | None]) -> list[tuple[int, int]]:
    """Words without a phone of their own (swallowed ones) share the span of the word before."""
    known = [span for span in spans if span]
    if not known:
        raise SynthesisError("the synthesiser said no word of the text; expected pronounceable words")
    filled: list[tuple[int, int]] = []
    for i, span in enumerate(spans):
        if span:
            filled.append(span)
        elif filled:
            start, end = filled[-1]
            middle = (start + end) // 2
            filled[-1] = (start, middle)
            filled.append((middle, end))
        else:
            start = next(s for s in spans[i:] if s)[0]
            filled.append((start, start))
    return filled


def _trimmed(pcm: np.ndarray, words: list[str], spans: list[tuple[int, int]], phones: list[Phone]) -> Utterance:
    """Cut to MARGIN_SAMPLES around what is said, faded there, and brought to SPEECH_DBFS."""
    voiced = [phone for phone in phones if phone.label != "sil"]
    first, last = voiced[0].start - MARGIN_SAMPLES, voiced[-1].end + MARGIN_SAMPLES
    pcm = np.pad(pcm[max(first, 0) : max(last, 0)], (max(-first, 0), max(last - len(pcm), 0)))
    fade = np.linspace(0, 1, MARGIN_SAMPLES // 2, dtype=np.float32)
    pcm[: len(fade)] *= fade
    pcm[len(pcm) - len(fade) :] *= fade[::-1]
    pcm *= _gain(pcm)
    shifted = [Phone(p.label, max(p.start - first, 0), min(p.end - first, len(pcm))) for p in phones]
    inside = [phone for phone in shifted if phone.end > phone.start]
    if inside[0].start > 0:
        inside.insert(0, Phone("sil", 0, inside[0].start))
    if inside[-1].end < len(pcm):
        inside.append(Phone("sil", inside[-1].end, len(pcm)))
    said = tuple(Word(word, start - first, end - first) for word, (start, end) in zip(words, spans, strict=True))
    return Utterance(pcm, said, tuple(inside))


def _gain(pcm: np.ndarray) -> np.float32:
    """Factor that brings the loud half of the blocks' power to SPEECH_DBFS, and no peak above PEAK."""
    blocks = pcm[: len(pcm) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    power = np.mean(np.square(blocks), axis=1)
    loud = power[power >= power.max() * 0.01]
    wanted = 10 ** (SPEECH_DBFS / 20) / np.sqrt(loud.mean() + 1e-12)
    return np.float32(min(wanted, PEAK / (np.abs(pcm).max() + 1e-9)))
