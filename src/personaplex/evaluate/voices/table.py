"""The rows about voices: each answer's likeness to its own voice prompt, to the others', and what must be lower."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from personaplex.evaluate.row import Row, mean, share
from personaplex.evaluate.statistics import is_above

OWN, TO_ITS = "similarity to the own voice prompt", "similarity to its voice prompt"
OTHERS = "control: similarity to the other voice prompts"


def _nearest_of(n: int) -> str:
    return f"nearest of {n} voice prompts is the own (by chance {1 / n:.3f})"


@dataclass(frozen=True)
class Answer:
    """One answer: the `voice` it was given in, its likeness to each voice prompt, its pitch and formants in Hz."""

    voice: str
    recording: str
    seconds: float
    likeness: Mapping[str, float]
    pitch_hz: float = 0.0
    formants_hz: np.ndarray = field(default_factory=lambda: np.zeros(3))
    text: str = ""

    @property
    def own(self) -> float:
        """Likeness to the voice prompt it was made with."""
        return self.likeness[self.voice]

    @property
    def others(self) -> list[float]:
        """Likeness to every other voice prompt."""
        return [value for name, value in self.likeness.items() if name != self.voice]

    @property
    def nearest(self) -> str:
        """The voice prompt it is most like."""
        return max(self.likeness, key=lambda name: self.likeness[name])

    @property
    def values(self) -> dict[str, list[float]]:
        """What it adds to rows about likeness, for comparisons in pairs."""
        found = {OWN: [self.own], f"{self.voice}: {TO_ITS}": [self.own]}
        if self.others:
            nearest = [float(self.nearest == self.voice)]
            found |= {_nearest_of(len(self.likeness)): nearest, OTHERS: [float(np.mean(self.others))]}
        return found

    def as_json(self) -> dict[str, Any]:
        """For the result's items."""
        found = {"item": f"{self.voice}: {self.recording}", **asdict(self)}
        return found | {"formants_hz": list(self.formants_hz), "nearest": self.nearest, "values": self.values}


Sound = tuple[float, np.ndarray]
"""Pitch and formants in Hz."""


def rows(answers: Sequence[Answer], prompts: Mapping[str, Sound], halves: Sequence[float], seed: int) -> list[Row]:
    """Every row; `prompts` are the voice prompts' sounds, `halves` how alike the halves of each are."""
    names = list(prompts)
    made = [
        mean(OWN, [answer.own for answer in answers], better="higher"),
        mean("for comparison: a voice prompt's first half and its second, which are short", halves),
    ]
    if len(names) > 1:
        made += [
            share(_nearest_of(len(names)), [answer.nearest == answer.voice for answer in answers], better="higher"),
            mean(OTHERS, [float(np.mean(a.others)) for a in answers]),
            _shuffled_row(answers, seed),
            _others_row(answers),
        ]
    made += _sound_rows(answers, prompts, seed)
    made += [mean(f"{name}: {TO_ITS}", [a.own for a in answers if a.voice == name], better="higher") for name in names]
    return made


def shuffled(names: Sequence[str], seed: int) -> dict[str, str]:
    """Each voice paired with another one, never itself: a cycle through them in random order."""
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    return {name: order[(i + 1) % len(order)] for i, name in enumerate(order)}


def _shuffled_differences(answers: Sequence[Answer], seed: int) -> list[float]:
    wrong = shuffled(list(answers[0].likeness), seed)
    return [answer.own - answer.likeness[wrong[answer.voice]] for answer in answers]


def _shuffled_row(answers: Sequence[Answer], seed: int) -> Row:
    what = "control, shuffled pairing: less similar than to the own by"
    return mean(what, _shuffled_differences(answers, seed), 0.0)


def _beaten(answers: Sequence[Answer]) -> list[float]:
    """For each answer, of how many answers in other voices it is more like its prompt than they are (ties half)."""
    found = []
    for answer in answers:
        strangers = [other.likeness[answer.voice] for other in answers if other.voice != answer.voice]
        if strangers:
            found.append(float(np.mean([(answer.own > s) + 0.5 * (answer.own == s) for s in strangers])))
    return found


def _others_row(answers: Sequence[Answer]) -> Row:
    what = "control: share of answers in other voices that are less like the voice prompt (by chance 0.5)"
    return mean(what, _beaten(answers), 0.5)


def controls(answers: Sequence[Answer], seed: int) -> list[dict[str, Any]]:
    """Whether each control is told from the real thing: its interval is beyond chance; None where there is none."""
    if not answers or len(answers[0].likeness) < 2:
        return []
    checks = (
        ("shuffled pairing", _shuffled_differences(answers, seed), 0.0),
        ("answers in other voices", _beaten(answers), 0.5),
    )
    found = []
    for name, values, chance in checks:
        found.append({"control": name, "measure": "similarity", "held": is_above(values, chance)})
    return found


def _sound_rows(answers: Sequence[Answer], prompts: Mapping[str, Sound], seed: int) -> list[Row]:
    made = [
        mean(
            "pitch: off the voice prompt's (semitones)",
            [_semitones(a, prompts[a.voice]) for a in answers],
            better="lower",
        ),
        mean(
            "formants 1 to 3: off the voice prompt's (%)",
            [_formants_off(a, prompts[a.voice]) for a in answers],
            better="lower",
        ),
    ]
    if len(prompts) > 1:
        wrong = shuffled(list(prompts), seed)
        made += [
            mean(
                "control, shuffled pairing: pitch off (semitones)",
                [_semitones(a, prompts[wrong[a.voice]]) for a in answers],
            ),
            mean(
                "control, shuffled pairing: formants off (%)",
                [_formants_off(a, prompts[wrong[a.voice]]) for a in answers],
            ),
        ]
    return made


def _semitones(answer: Answer, prompt: Sound) -> float:
    """Distance of the medians of pitch; NaN where either has no voice in it."""
    if not answer.pitch_hz or not prompt[0]:
        return math.nan
    return abs(12 * math.log2(answer.pitch_hz / prompt[0]))


def _formants_off(answer: Answer, prompt: Sound) -> float:
    """Mean distance of the medians of three formants in per cent; NaN where either has none."""
    ours, theirs = answer.formants_hz, prompt[1]
    if not ours.all() or not theirs.all():
        return math.nan
    return 100 * float(np.mean(np.exp(np.abs(np.log(ours / theirs))) - 1))


def matrix(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Mean likeness of the answers in each voice to each voice prompt."""
    return {
        name: {other: float(np.mean([a.likeness[other] for a in answers if a.voice == name])) for other in a.likeness}
        for name, a in {answer.voice: answer for answer in answers}.items()
    }


def nearest_counts(answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """How many answers in each voice are nearest to which voice prompt; those to none are left out."""
    counts: dict[str, dict[str, int]] = {}
    for answer in answers:
        of = counts.setdefault(answer.voice, {})
        of[answer.nearest] = of.get(answer.nearest, 0) + 1
    return counts


def confusions(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Which voices are taken for which others, for people: one line for each; empty where none is."""
    lines = []
    for name, of in counts.items():
        others = [f"{other} {n}" for other, n in sorted(of.items(), key=lambda pair: -pair[1]) if other != name]
        if others:
            lines.append(f"{name}: of {sum(of.values())} answers, nearest to {', '.join(others)}")
    return "\n".join(lines)
