"""Numbers from 0 to 99 and times of day as they are spoken."""

from __future__ import annotations

from collections.abc import Sequence

_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", *_TEENS.split())
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

SPOKEN: tuple[str, ...] = tuple(
    _ONES[n] if n < 20 else " ".join([_TENS[n // 10 - 2], *([_ONES[n % 10]] if n % 10 else [])]) for n in range(100)
)
"""`SPOKEN[n]` is the number n in words: "forty two"."""

VALUE = {words: n for n, words in enumerate(SPOKEN)}
NUMBER_WORDS = frozenset([*_ONES, *_TENS, "hundred", "thousand", "noon"])


def spoken_time(half_hours: int) -> str:
    """A time of day as it is said: half hours since midnight, 19 is "nine thirty", 24 is "noon"."""
    hour = SPOKEN[half_hours // 2 if half_hours < 26 else half_hours // 2 - 12]
    return "noon" if half_hours == 24 else f"{hour} thirty" if half_hours % 2 else hour


def digits(words: str) -> str:
    """A spoken number in digits: "forty two" is 42."""
    return str(VALUE[words])


def clock(time: str) -> str:
    """A spoken time in digits: "nine thirty" is 9:30, "nine" is 9, "noon" stays."""
    hour, _, minutes = time.partition(" ")
    return time if hour == "noon" else f"{VALUE[hour]}:{digits(minutes)}" if minutes else digits(hour)


def numbers_in(words: Sequence[str]) -> list[str]:
    """The runs of number words in a sentence: "from nine to five thirty" holds "nine" and "five thirty"."""
    runs: list[list[str]] = [[]]
    for word in words:
        if word in NUMBER_WORDS:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]
