"""What must fail: the same checks on another answer, and on silence, noise, a tone and a loop in an answer's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from personaplex.evaluate.hearing import Ear
from personaplex.evaluate.prompts.expectation import Expectation
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.verification.checks import Exhibit
from personaplex.evaluate.words import words_said
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS, SAMPLE_RATE

LOOP_FRAMES = 6
"""About half a second, said over and over."""
LOOPS = 8
TONE_HZ = 440
LONGEST_NOISE = 2 * SAMPLE_RATE
"""Of noise and tone: some recognisers think for long about what is no speech."""

_OF_EARS = ("heard", "errors", "overlap")
"""Checks of what a recogniser hears."""


@dataclass(frozen=True)
class Control:
    """An exhibit that is no answer to what was asked, and the checks that must not let it pass."""

    name: str
    of: str
    exhibit: Exhibit
    expectation: Expectation
    must_fail: tuple[str, ...]

    def heard_by(self, ear: Ear) -> Control:
        """With what a recogniser hears of it, where that is looked at. Raises EngineError."""
        if not set(self.must_fail) & set(_OF_EARS):
            return self
        return replace(self, exhibit=replace(self.exhibit, heard=ear.hear(self.exhibit.pcm)))


def exchanged(exhibits: Sequence[Exhibit], questions: Sequence[Question]) -> Iterator[Control]:
    """Each question with the answer to the next that wants other words: all of it, and its sound only."""
    n = len(exhibits)
    for i, (exhibit, question) in enumerate(zip(exhibits, questions, strict=True)):
        places = ((i + step) % n for step in range(1, n))
        j = next((j for j in places if is_another(question, questions[j])), None)
        if j is not None:
            other, expectation = exhibits[j], question.expectation
            yield Control("another answer", question.name, other, expectation, ("words", "heard"))
            sound = replace(other, text=exhibit.text)
            yield Control("another answer's sound", question.name, sound, expectation, ("heard", "errors"))


def is_another(question: Question, other: Question) -> bool:
    """Whether an answer to `other` is none to `question`."""
    if question.expectation.wanted:
        return question.expectation.differs_from(other.expectation)
    return question.name != other.name


def spoilt(exhibit: Exhibit, question: Question) -> Iterator[Control]:
    """An answer with its sound taken away, or put another in its place; nobody has heard that yet."""
    name, expectation = question.name, question.expectation
    n, level = len(exhibit.pcm), float(np.sqrt(np.mean(np.square(exhibit.pcm)))) or 0.1
    silence = np.zeros(n, np.float32)
    yield Control("silence", name, Exhibit(silence, exhibit.text, ""), expectation, (*_OF_EARS, "silence"))
    yield Control("no answer", name, Exhibit(silence, "", ""), expectation, ("answers", "words", *_OF_EARS))
    n = min(n, LONGEST_NOISE)
    noise = np.random.default_rng(0).normal(0, level, n).astype(np.float32)
    yield Control("noise", name, Exhibit(noise, exhibit.text, ""), expectation, ("heard", "errors", "sound"))
    tone = np.float32(level) * np.sqrt(2) * np.sin(2 * np.pi * TONE_HZ * np.arange(n) / SAMPLE_RATE)
    tone = tone.astype(np.float32)
    yield Control("tone", name, Exhibit(tone, exhibit.text, ""), expectation, ("heard", "errors", "sound"))
    yield Control("loop of words", name, loop_of_words(exhibit), expectation, ("loops",))
    if exhibit.codes is not None:
        yield Control("loop of codes", name, loop_of_codes(exhibit), expectation, ("loops",))


def loop_of_words(exhibit: Exhibit) -> Exhibit:
    """The last word of an answer again and again, with nothing said of its codes: they must not fail in its place."""
    word = (words_said(exhibit.text) or ["and"])[-1]
    return Exhibit(exhibit.pcm, " ".join([word] * LOOPS), "")


def loop_of_codes(exhibit: Exhibit) -> Exhibit:
    """The loudest half second of an answer, with its codes, again and again, and no words."""
    assert exhibit.codes is not None and exhibit.codes.shape[0] == N_CODEBOOKS
    frames = exhibit.pcm[: len(exhibit.pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    power = np.convolve(np.mean(np.square(frames), axis=1), np.ones(min(LOOP_FRAMES, len(frames))), "valid")
    at = int(np.argmax(power))
    pcm = np.tile(frames[at : at + LOOP_FRAMES].reshape(-1), LOOPS)
    return Exhibit(pcm, "", "", np.tile(exhibit.codes[:, at : at + LOOP_FRAMES], LOOPS))
