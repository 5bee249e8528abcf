"""Speech that is none: loops, silence, noise, a tone. Measured over a whole recording, from its sound, codes and text.

The live engine's `guard` watches for the same while a conversation runs, and must not cry wolf; here a recording is
over, and each measure has its number and its threshold. Those with a source are the thresholds of
github.com/richiever/Personaplex-bench; the loops of words those of soniqo/speech-swift's round-trip test. What these
leave open is said where it is settled: tokens count only where the agent is heard, for its silence is one token too.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from personaplex.errors import AudioError
from personaplex.evaluate.words import words_said
from personaplex.guard import flatness, spectrum
from personaplex.turns import QUIET_RMS
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS, SAMPLE_RATE

FLATNESS_FRAMES = 12
"""Frames of one window of the spectrum: a second."""
ENTROPY_FRAMES = 25
"""Frames in which codes are counted, two seconds aloud: at most 4.64 bits, of four codes in turn 2."""
LOOPED_FRAMES = 25
"""Longest passage of codes, in frames, that is looked for again right behind itself."""
LOOPED_WORDS = 8
"""Longest phrase, in words, that is looked for again right behind itself."""
COUNTED_WORDS = 10
"""Of fewer words a share of different ones says nothing."""
FULL_SCALE = 0.999

Kind = Literal[
    "not finite", "silence", "noise", "monotony", "clipping", "same code", "code loop", "few codes", "word loop",
    "few words",
]  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """What was measured of one side of a recording. NaN where there was nothing to measure.

    `silence` is the share of frames that are not heard; `flatness` the spectrum's of its flattest second aloud (white
    noise 0.96); `energy_cv` how much the frames' levels differ (deviation over mean; a tone 0); `clipped` the share of
    samples at full scale. `same_code`: frames in a row, aloud, with one semantic code. `code_loop`: frames aloud of a
    passage of codes that is followed by itself, all repetitions together. `code_entropy`: the fewest bits of the
    semantic codes of two seconds aloud. `word_loop`: how often a phrase is said in a row. `unique_words`: different
    words over words.
    """

    seconds: float
    is_finite: bool
    silence: float
    flatness: float
    energy_cv: float
    clipped: float
    same_code: float
    code_loop: float
    code_entropy: float
    word_loop: int
    unique_words: float

    def as_json(self) -> dict[str, float | bool]:
        """By name, rounded as far as anybody looks."""
        values = dataclasses.asdict(self)
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


@dataclass(frozen=True)
class Thresholds:
    """From where on a measure is a sign that this is no speech. Each is the last value that is not."""

    silence: float = 0.95
    flatness: float = 0.3
    energy_cv: float = 0.1
    clipped: float = 0.01
    same_code: int = 20
    code_loop: int = 24
    code_entropy: float = 2.0
    word_loop: int = 3
    unique_words: float = 0.3


class Sign(NamedTuple):
    """That a recording degenerates: of which kind, and in words, with the number and what it may be."""

    kind: Kind
    reason: str


def measure(pcm: np.ndarray, *, codes: np.ndarray | None = None, text: str = "") -> Measures:
    """Measure `pcm` [S] (24 kHz), its text and its `codes` [8, T], a column for each frame of sound, if they are known.

    Raises AudioError for no samples, another shape, and codes that do not go with the sound.
    """
    sound = np.asarray(pcm)
    if sound.ndim != 1 or not len(sound):
        raise AudioError(f"expected samples [S] of one channel, at least one; found an array of shape {sound.shape}")
    sound = sound.astype(np.float32) / 32768 if sound.dtype == np.int16 else sound.astype(np.float32)
    is_finite = bool(np.isfinite(sound).all())
    frames = _frames(np.nan_to_num(sound, nan=0.0, posinf=1.0, neginf=-1.0))
    levels = np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1))
    aloud = levels >= QUIET_RMS
    if codes is not None and (codes.shape[0] != N_CODEBOOKS or abs(codes.shape[1] - len(frames)) > 1):
        raise AudioError(f"{len(frames)} frames of sound and codes {codes.shape}; expected [8, frames]")
    heard = None if codes is None else codes[:, : len(frames)][:, aloud[: codes.shape[1]]]
    said = words_said(text)
    return Measures(
        len(sound) / SAMPLE_RATE,
        is_finite,
        1 - float(np.mean(aloud)),
        _flattest(frames, aloud),
        float(np.std(levels[aloud]) / np.mean(levels[aloud])) if aloud.any() else math.nan,
        float(np.mean(np.abs(np.nan_to_num(sound, nan=1.0)) >= FULL_SCALE)),
        math.nan if heard is None else _longest_run(heard[0]),
        math.nan if heard is None else _longest_loop(heard),
        math.nan if heard is None else _least_entropy(heard[0]),
        _most_repeats(said),
        len(set(said)) / len(said) if len(said) >= COUNTED_WORDS else math.nan,
    )


def signs(measures: Measures, limits: Thresholds = Thresholds()) -> list[Sign]:
    """Every sign of degenerate speech; none for speech. What could not be measured is no sign."""
    m, found = measures, list[Sign]()
    if not m.is_finite:
        found.append(Sign("not finite", "samples that are no numbers"))
    if m.silence >= limits.silence:
        found.append(Sign("silence", f"{m.silence:.0%} of it is silent; less than {limits.silence:.0%} expected"))
    if m.flatness > limits.flatness:
        found.append(Sign("noise", f"spectral flatness {m.flatness:.2f}; at most {limits.flatness} expected"))
    if m.energy_cv < limits.energy_cv:
        found.append(Sign("monotony", f"level varies by {m.energy_cv:.2f}; at least {limits.energy_cv} expected"))
    if m.clipped > limits.clipped:
        found.append(Sign("clipping", f"{m.clipped:.1%} of it at full scale; at most {limits.clipped:.0%} expected"))
    if m.same_code > limits.same_code:
        found.append(Sign("same code", f"one code for {m.same_code:.0f} frames; at most {limits.same_code} expected"))
    if m.code_loop > limits.code_loop:
        found.append(Sign("code loop", f"codes in a loop for {m.code_loop:.0f} frames; {limits.code_loop} at most"))
    if m.code_entropy < limits.code_entropy:
        reason = f"{m.code_entropy:.1f} bits in two seconds of codes; at least {limits.code_entropy} expected"
        found.append(Sign("few codes", reason))
    if m.word_loop > limits.word_loop:
        found.append(Sign("word loop", f"a phrase {m.word_loop} times in a row; at most {limits.word_loop} expected"))
    if m.unique_words < limits.unique_words:
        reason = f"{m.unique_words:.0%} of the words are different ones; at least {limits.unique_words:.0%} expected"
        found.append(Sign("few words", reason))
    return found


def _frames(sound: np.ndarray) -> np.ndarray:
    """Whole frames [F, 1920]; a beginning of one is left out, but a recording shorter than one is padded."""
    whole = len(sound) // FRAME_SAMPLES * FRAME_SAMPLES
    return (sound[:whole] if whole else np.pad(sound, (0, FRAME_SAMPLES - len(sound)))).reshape(-1, FRAME_SAMPLES)


def _flattest(frames: np.ndarray, aloud: np.ndarray) -> float:
    """The flatness of the flattest second in which every frame is heard."""
    spectra = np.stack([spectrum(frame).astype(np.float32) for frame in frames])
    flattest = math.nan
    for at in range(len(frames) - FLATNESS_FRAMES + 1):
        window = slice(at, at + FLATNESS_FRAMES)
        if aloud[window].all():
            found = flatness(spectra[window])
            flattest = found if math.isnan(flattest) else max(flattest, found)
    return flattest


def _longest_run(codes: np.ndarray) -> int:
    longest = run = 0
    for i, code in enumerate(codes):
        run = run + 1 if i and code == codes[i - 1] else 1
        longest = max(longest, run)
    return longest


def _longest_loop(codes: np.ndarray) -> int:
    """Frames of the longest passage of `codes` [8, T] that repeats itself at least twice more; 0 without one."""
    longest = 0
    for period in range(1, min(LOOPED_FRAMES, codes.shape[1] // 3) + 1):
        run = 0
        for same in (codes[:, period:] == codes[:, :-period]).all(axis=0):
            run = run + 1 if same else 0
            if run >= 2 * period:
                longest = max(longest, run + period)
    return longest


def _least_entropy(codes: np.ndarray) -> float:
    """Bits of the distribution of `codes` [T] in the window that holds the fewest."""
    least = math.nan
    for at in range(len(codes) - ENTROPY_FRAMES + 1):
        counts = np.array(list(Counter(codes[at : at + ENTROPY_FRAMES].tolist()).values()))
        share = counts / ENTROPY_FRAMES
        bits = float(-(share * np.log2(share)).sum())
        least = bits if math.isnan(least) else min(least, bits)
    return least


def _most_repeats(words: Sequence[str]) -> int:
    """How often in a row the phrase that is repeated most is said: 1 for words that never follow themselves."""
    most = min(1, len(words))
    for length in range(1, LOOPED_WORDS + 1):
        for start in range(len(words) - 2 * length + 1):
            phrase, n = words[start : start + length], 1
            while words[start + n * length : start + (n + 1) * length] == phrase:
                n += 1
            most = max(most, n)
    return most
