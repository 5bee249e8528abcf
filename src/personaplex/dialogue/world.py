"""What there is to talk about: the words of `world.toml`, and which of them are held out by `heldout.json`."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personaplex.dialogue.numbers import SPOKEN, VALUE, spoken_time

Split = Literal["train", "heldout"]
Key = tuple[str, ...]

_FOLDER = Path(__file__).parent


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text("utf-8"))


_WORLD, PROMPTS, ANSWERS = (_toml(name) for name in ("world", "prompts", "answers"))
PHRASINGS: dict[str, tuple[str, ...]] = {
    intent: tuple(text.splitlines()) for intent, text in _toml("phrasings").items()
}
HELDOUT: dict[str, Any] = json.loads((_FOLDER / "heldout.json").read_text("utf-8"))

NAMES: tuple[str, ...] = tuple(_WORLD["people"]["names"].split())
SURNAMES: tuple[str, ...] = tuple(_WORLD["people"]["surnames"].split())
BUSINESSES: tuple[str, ...] = tuple(_WORLD["shops"]["businesses"])
ITEMS: tuple[str, ...] = tuple(_WORLD["shops"]["items"].split())
STREETS: tuple[str, ...] = tuple(_WORLD["shops"]["streets"].split())
THINGS: dict[str, dict[str, str]] = _WORLD["things"]
DAYS: tuple[str, ...] = tuple(_WORLD["lists"]["days"])
MONTHS = tuple(THINGS["month_days"])
LISTS: dict[str, tuple[str, ...]] = {
    name: tuple(values.split() if isinstance(values, str) else values) for name, values in _WORLD["lists"].items()
}

_COMPANIES = [
    f"{first} {second}"
    for first in _WORLD["people"]["adjectives"].split()
    for second in _WORLD["people"]["nouns"].split()
]
_COMPANIES += [f"{name} and {kin}" for name in SURNAMES for kin in ("sons", "daughters", "company")]
_OPENS = [spoken_time(t) for t in range(10, 25)]
_CLOSES = [spoken_time(t) for t in range(26, 47)]
_HELDOUT_HOURS = {(opens, closes) for opens, closes in HELDOUT["hours"]}
KINDS_OF_STREET: tuple[str, ...] = tuple(_WORLD["shops"]["kinds_of_street"])


@dataclass(frozen=True)
class Values:
    """The facts that a split may use, as spoken words; `hours` are pairs of opening and closing time."""

    names: tuple[str, ...]
    companies: tuple[str, ...]
    prices: tuple[str, ...]
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    hours: tuple[tuple[str, str], ...]
    streets: tuple[str, ...]


def _values() -> dict[Split, Values]:
    held = {name: tuple(HELDOUT[name]) for name in ("names", "companies", "opens", "closes", "streets")}
    held["prices"] = tuple(SPOKEN[n] for n in HELDOUT["prices"])
    opens = tuple(time for time in _OPENS if time not in held["opens"])
    closes = tuple(time for time in _CLOSES if time not in held["closes"])
    pairs = [(opens, closes) for opens in _OPENS for closes in _CLOSES]
    trained = tuple(
        (first, last)
        for first, last in pairs
        if first in opens and last in closes and (first, last) not in _HELDOUT_HOURS
    )
    train = Values(
        names=NAMES,
        companies=tuple(company for company in _COMPANIES if company not in held["companies"]),
        prices=tuple(SPOKEN[n] for n in range(1, 100) if SPOKEN[n] not in held["prices"]),
        opens=opens,
        closes=closes,
        hours=trained,
        streets=STREETS,
    )
    return {"train": train, "heldout": Values(hours=tuple(pair for pair in pairs if pair not in set(trained)), **held)}


VALUES: dict[Split, Values] = _values()

_IRREGULAR = {
    "sheep": "sheep",
    "fish": "fish",
    "mouse": "mice",
    "wolf": "wolves",
    "scarf": "scarves",
    "watch": "watches",
}


def plural(noun: str) -> str:
    """The plural of an item or animal of this world."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeou":
        return noun[:-1] + "ies"
    return noun + "s"


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def following(thing: str, steps: int) -> str:
    """The day or month that comes `steps` after one, round and round."""
    ring = DAYS if thing in DAYS else MONTHS
    return ring[(ring.index(thing) + steps) % len(ring)]


OPERATIONS = ("plus", "minus", "times")


def _sums() -> dict[str, list[Key]]:
    pairs = [(a, b) for a in range(1, 21) for b in range(1, 21)]
    spoken = {
        "plus": [(a, b) for a, b in pairs],
        "minus": [(a, b) for a, b in pairs if a >= b],
        "times": [(a, b) for a, b in pairs if a * b < 100],
    }
    return {name: [(SPOKEN[a], SPOKEN[b]) for a, b in sums] for name, sums in spoken.items()}


def result(operation: str, a: str, b: str) -> str:
    """The spoken result of a spoken sum; operation is plus, minus or times."""
    x, y = VALUE[a], VALUE[b]
    return SPOKEN[{"plus": x + y, "minus": x - y, "times": x * y}[operation]]


def _single(values: tuple[str, ...]) -> list[Key]:
    return [(value,) for value in values]


USER_KEYS: dict[str, list[Key]] = {
    **{intent: [()] for intent in PHRASINGS},
    **_sums(),
    **{name: _single(tuple(table)) for name, table in THINGS.items()},
    **{name: _single(DAYS + MONTHS) for name in ("after", "before")},
    **{name: _single(values) for name, values in LISTS.items() if name != "days"},
    **{name: _single(ITEMS) for name in ("price", "has_item")},
    "tell_name": _single(NAMES),
    "tell_number": _single(SPOKEN[1:]),
}
"""Every key of every user intent, in training values; those without a slot have the one empty key."""

USER_INTENTS = tuple(USER_KEYS)
