"""How much of everything: the lines that one agent voice needs, and a balanced set of user lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from personaplex.dialogue.facts import Facts, sample_address, sample_facts
from personaplex.dialogue.invented import Inventor
from personaplex.dialogue.line import TOLD, Line, agent_line, agent_lines, answer_key, filled, phrasings
from personaplex.dialogue.numbers import SPOKEN
from personaplex.dialogue.world import (
    HELDOUT,
    ITEMS,
    LISTS,
    NAMES,
    STREETS,
    THINGS,
    USER_INTENTS,
    USER_KEYS,
    VALUES,
    Key,
    Split,
)

WEIGHTS = {
    **dict.fromkeys(USER_INTENTS, 1.0),
    **{"price": 14.0, "has_item": 6.0, "ask_name": 3.0, "ask_company": 3.0},
    **dict.fromkeys(("opens", "closes", "hours", "address"), 5.0),
    **{"unknown": 10.0, "backchannel": 5.0},
    **{"tell_name": 6.0, "tell_color": 1.5, "tell_number": 2.0, "tell_pet": 1.5, "tell_place": 1.5},
    **dict.fromkeys(("recall_name", "recall_color", "recall_number", "recall_pet", "recall_place"), 1.3),
    **dict.fromkeys(("plus", "minus", "times"), 3.5),
    **{"capital": 4.0, "opposite": 4.0, "color": 3.0, "animal_sound": 1.2, "animal_legs": 1.5, "animal_fact": 1.5},
    **{"after": 1.5, "before": 1.5, "joke": 2.0, "spell": 3.0, "repeat": 3.0, "again": 2.0, "wait": 2.0},
    **{"greeting": 2.5, "thanks": 1.5, "goodbye": 1.5, "ask_role": 1.5, "help": 1.5},
}
"""How often each user intent comes up in `user_plan`; questions about facts are about 35 %."""


ROLES = 900
"""Pairs of name and company that each voice greets with."""


def _draw(rng: np.random.Generator, values: tuple[str, ...], n: int) -> list[str]:
    """n of the values, every one before any comes twice."""
    rounds = [rng.permutation(len(values)) for _ in range(-(-n // len(values)))]
    return [values[i] for i in np.concatenate(rounds)[:n]]


_HELD = {word for kind in ("names", "companies", "streets") for value in HELDOUT[kind] for word in value.split()}
_COMPANY_WORDS = {word for company in VALUES["train"].companies for word in company.split()}
_NAME, _STREET = Inventor(NAMES, _HELD), Inventor(STREETS, _HELD)
_COMPANY = Inventor(_COMPANY_WORDS, _HELD)
_MINUTES = ("ten", "fifteen", "twenty", "twenty five", "forty", "forty five", "fifty")


def _company(rng: np.random.Generator) -> str:
    """A company with an invented name, or half of one."""
    first, second = _COMPANY.word(rng), _COMPANY.word(rng)
    known = VALUES["train"].companies[rng.integers(len(VALUES["train"].companies))].split()
    forms = (f"{first} {second}", f"{first} {known[-1]}", f"{known[0]} {second}", f"{first} and {known[-1]}")
    two_words = len(known) == 2
    return forms[rng.integers(3)] if two_words else forms[3]


def invented_facts(rng: np.random.Generator, known: Facts, share: float) -> Facts:
    """A service role's facts, a `share` of them exchanged for ones that nobody has; never for held-out ones.

    Items and prices stay: there are not enough words for them to be made up.
    """

    def fresh() -> bool:
        return bool(rng.random() < share)

    return replace(
        known,
        name=_NAME.word(rng) if fresh() else known.name,
        company=_company(rng) if fresh() else known.company,
        opens=_moment(rng) if known.opens and fresh() else known.opens,
        closes=_moment(rng) if known.closes and fresh() else known.closes,
        address=sample_address(rng, "train", _STREET.word(rng)) if known.address and fresh() else known.address,
    )


def _moment(rng: np.random.Generator) -> str:
    """A time of day that no shop here opens or closes at."""
    return f"{SPOKEN[rng.integers(1, 13)]} {_MINUTES[rng.integers(len(_MINUTES))]}"


def _several(rng: np.random.Generator, known: tuple[str, ...], made_up: list[str], n: int) -> list[str]:
    """n values in random order: the invented ones, once each, and the rest known ones."""
    values = [*made_up, *_draw(rng, known, n - len(made_up))]
    return [values[i] for i in rng.permutation(n)]


def agent_plan(rng: np.random.Generator, invented: float = 0.0) -> list[Line]:
    """Every line that one voice needs in a bank of clips: all closed answers, and a sample of the facts of roles.

    `invented` is the share of names, companies and streets that are made up and said by this voice alone.
    """
    values = VALUES["train"]
    made_up = [[make(rng) for _ in range(round(ROLES * invented))] for make in (_NAME.word, _company)]
    # Several companies to a name and prices to an item, or a voice would learn the pairs instead of reading its prompt.
    names, companies = (
        _several(rng, known, new, ROLES) for known, new in zip((values.names, values.companies), made_up, strict=True)
    )
    once: list[tuple[str, Key]] = [("greet", pair) for pair in zip(names, companies, strict=True)]
    once += [("ask_name", (name,)) for name in dict.fromkeys(names)]
    once += [("ask_company", (company,)) for company in dict.fromkeys(companies)]
    once += [("price", pair) for pair in zip(_draw(rng, ITEMS, 1400), _draw(rng, values.prices, 1400), strict=True)]
    once += [("hours", values.hours[i]) for i in rng.permutation(len(values.hours))[:250]]
    streets = [_STREET.word(rng) if rng.random() < invented else None for _ in range(500)]
    addresses = dict.fromkeys(sample_address(rng, "train", street) for street in streets)
    once += [("address", (address,)) for address in addresses]
    once += [("has_item", (item, has)) for item in ITEMS for has in ("yes", "no")]
    told = {"name": _draw(rng, values.names, 220), "number": list(SPOKEN[1:])}
    told |= {what: list(LISTS[f"tell_{what}"]) for what in ("color", "pet", "place")}
    once += [(f"{verb}_{what}", (value,)) for what in TOLD for value in told[what] for verb in ("tell", "recall")]

    every: list[tuple[str, Key]] = [("opens", (time,)) for time in values.opens]
    every += [("closes", (time,)) for time in values.closes]
    every += [("arithmetic", (number,)) for number in SPOKEN]
    nothing_known = Facts()
    closed = [*THINGS, "after", "before", "spell", "repeat"]
    for intent in closed:
        every += [answer for key in USER_KEYS[intent] if (answer := answer_key(intent, key, nothing_known, {}))]
    every += [("help", ("assistant",)), ("help", ("service",))]
    every += [(intent, ()) for intent in WITHOUT_KEY]
    return [agent_line(rng, *answer) for answer in once] + [line for answer in every for line in agent_lines(*answer)]


def own_plan(rng: np.random.Generator, n: int, invented: float) -> list[Line]:
    """n lines of roles that come from nowhere: any name with any company, any item with any price, any time of day.

    What the roles hold is training's, `invented` of it nobody's (`invented_facts`).
    """
    lines: list[Line] = []
    while len(lines) < n:
        facts = invented_facts(rng, sample_facts(rng, "train"), invented)
        assert facts.name and facts.company
        answers: list[tuple[str, Key]] = [("greet", (facts.name, facts.company)), ("ask_name", (facts.name,))]
        answers += [("ask_company", (facts.company,)), *(("price", pair) for pair in facts.prices)]
        answers += [(what, (time,)) for what, time in (("opens", facts.opens), ("closes", facts.closes)) if time]
        if facts.opens and facts.closes:
            answers.append(("hours", (facts.opens, facts.closes)))
        if facts.address:
            answers.append(("address", (facts.address,)))
        if rng.random() < OF_USERS:
            told = NAMES[rng.integers(len(NAMES))]
            answers += [(f"{verb}_name", (told,)) for verb in ("tell", "recall")]
        lines += [agent_line(rng, *answer) for answer in answers]
    return lines[:n]


OF_USERS = 0.5
"""Of the roles of `own_plan`, the share that somebody tells a name."""

WITHOUT_KEY = (
    "greeting",
    "thanks",
    "goodbye",
    "no_name",
    "ask_role",
    "how_are_you",
    "weather",
    "bored",
    "favorite_food",
    "robot",
    "joke",
    "not_told",
    "wait",
    "unknown",
    "unknown_fact",
)
"""The agent's intents that have the empty key."""


def user_plan(rng: np.random.Generator, n: int, split: Split = "train") -> list[Line]:
    """n user lines in random order, intents by `WEIGHTS`; keys and phrasings each come round before they repeat."""
    total = sum(WEIGHTS.values())
    bounds = np.rint(np.cumsum(list(WEIGHTS.values())) / total * n).astype(int)
    lines: list[Line] = []
    for intent, bound in zip(WEIGHTS, bounds, strict=True):
        count = int(bound) - len(lines)
        keys, texts = USER_KEYS[intent], phrasings(intent, split)
        which_key = _round_robin(rng, len(keys), count)
        which_text = _round_robin(rng, len(texts), count)
        lines += [filled(intent, keys[k], texts[t]) for k, t in zip(which_key, which_text, strict=True)]
    return [lines[i] for i in rng.permutation(n)]


def _round_robin(rng: np.random.Generator, size: int, n: int) -> list[int]:
    rounds = [rng.permutation(size) for _ in range(-(-n // size))]
    return [int(i) for part in rounds for i in part][:n]
