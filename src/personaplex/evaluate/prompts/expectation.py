"""What an answer must say: words and phrases as whole words, numbers in digits or in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from personaplex.dialogue.numbers import numbers_in
from personaplex.evaluate.words import holds, words_said


@dataclass(frozen=True)
class Expectation:
    """What makes an answer right: of each set of phrases in `wanted` any one, none of `never`, and something at all.

    With `no_other_number` no number may be said but those in `wanted`: who answers with every hour of the day says the
    right one too.
    """

    wanted: tuple[tuple[str, ...], ...] = ()
    never: tuple[str, ...] = ()
    no_other_number: bool = False

    def missing(self, said: str) -> list[str]:
        """What is wrong with an answer, in words; nothing for a right one."""
        words = words_said(said)
        if not words:
            return ["nothing is said"]
        found = [
            f"without {' or '.join(repr(phrase) for phrase in phrases)}"
            for phrases in self.wanted
            if not any(holds(words, words_said(phrase)) for phrase in phrases)
        ]
        found += [f"with {phrase!r}" for phrase in self.never if holds(words, words_said(phrase))]
        if self.no_other_number:
            known = {number for phrases in self.wanted for p in phrases for number in numbers_in(words_said(p))}
            found += [f"with the number {number!r}" for number in numbers_in(words) if number not in known]
        return found

    def described(self) -> str:
        """In words for a person; empty where nothing is expected."""
        parts = [" or ".join(phrases) for phrases in self.wanted]
        parts += [f"never {' or '.join(self.never)}"] if self.never else []
        return "; ".join([*parts, "no other number"] if self.no_other_number else parts)

    def is_met(self, said: str) -> bool:
        """Whether an answer is right."""
        return not self.missing(said)

    @property
    def phrases(self) -> frozenset[tuple[str, ...]]:
        """All that is wanted, in words."""
        return frozenset(tuple(words_said(phrase)) for phrases in self.wanted for phrase in phrases)

    def differs_from(self, other: Expectation) -> bool:
        """Whether an answer that meets one need not meet the other: no phrase of one is in one of the other's."""
        return bool(self.wanted and other.wanted) and not any(
            holds(mine, theirs) or holds(theirs, mine) for mine in self.phrases for theirs in other.phrases
        )


def wordless(phrases: Iterable[str]) -> list[str]:
    """Those phrases that hold no word at all, and could never be missed."""
    return [phrase for phrase in phrases if not words_said(phrase)]
