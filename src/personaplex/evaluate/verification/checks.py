"""The checks of one answer: what is said, what is heard of it, and whether it is speech at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from personaplex.evaluate.degeneracy import Kind, Thresholds, measure, signs
from personaplex.evaluate.prompts.expectation import Expectation
from personaplex.evaluate.statistics import word_errors
from personaplex.evaluate.words import words_said

CHECKS = {
    "answers": "the answer has words enough",
    "words": "its text holds the expected words",
    "heard": "a recogniser hears the expected words",
    "errors": "a recogniser hears the answer's own text",
    "overlap": "some of its words are heard",
    "silence": "it is not silent",
    "loops": "neither words nor codes go round in a loop",
    "sound": "it is no noise, no tone, not clipped, and of numbers",
}
"""By name, in order."""

_KINDS: dict[str, frozenset[Kind]] = {
    "silence": frozenset({"silence"}),
    "loops": frozenset({"same code", "code loop", "few codes", "word loop", "few words"}),
    "sound": frozenset({"not finite", "noise", "monotony", "clipping"}),
}


@dataclass(frozen=True)
class Limits:
    """From where on a check is passed.

    `words`: fewest words of an answer. `errors`: most word errors over words, of the recogniser against the text.
    `overlap`: least share of the text's different words that are heard. `speech`: see `degeneracy`.
    """

    words: int = 3
    errors: float = 0.5
    overlap: float = 0.2
    speech: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class Exhibit:
    """What is judged: sound [S] at 24 kHz, its codes [8, T] if they are known, the agent's text, a recogniser's."""

    pcm: np.ndarray = field(repr=False)
    text: str
    heard: str
    codes: np.ndarray | None = field(default=None, repr=False)


class Finding(NamedTuple):
    """Whether a check is passed, and why not in words."""

    passed: bool
    reason: str = ""


def judge(exhibit: Exhibit, expectation: Expectation, limits: Limits) -> dict[str, Finding]:
    """Every check by name. Without expected words nothing is said of `words` and `heard`."""
    said, heard = words_said(exhibit.text), words_said(exhibit.heard)
    found = {"answers": _finding(len(said) >= limits.words, f"{len(said)} words; at least {limits.words} expected")}
    if expectation.wanted or expectation.never:
        found["words"] = _expected(expectation, exhibit.text)
        found["heard"] = _expected(expectation, exhibit.heard)
    rate = word_errors(said, heard) / len(said) if said else 1.0
    found["errors"] = _finding(rate <= limits.errors, f"{rate:.2f} errors a word; at most {limits.errors} expected")
    shared = len(set(said) & set(heard)) / len(set(said)) if said else 0.0
    found["overlap"] = _finding(
        shared >= limits.overlap, f"{shared:.0%} of the words are heard; at least {limits.overlap:.0%} expected"
    )
    shown = signs(measure(exhibit.pcm, codes=exhibit.codes, text=exhibit.text), limits.speech)
    for name, kinds in _KINDS.items():
        reasons = [sign.reason for sign in shown if sign.kind in kinds]
        found[name] = _finding(not reasons, "; ".join(reasons))
    return found


def _finding(passed: bool, reason: str) -> Finding:
    return Finding(passed, "" if passed else reason)


def _expected(expectation: Expectation, text: str) -> Finding:
    missing = expectation.missing(text)
    return _finding(not missing, f"{text!r}: {', '.join(missing)}")
