"""One line of talk: what the user may say, what the agent answers, and which answer is the right one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from personaplex.dialogue.facts import Facts
from personaplex.dialogue.world import (
    ANSWERS,
    DAYS,
    HELDOUT,
    OPERATIONS,
    PHRASINGS,
    THINGS,
    USER_KEYS,
    Key,
    Split,
    following,
    plural,
    result,
    with_article,
)


@dataclass(frozen=True)
class Line:
    """A spoken line: its intent, the key that fills its slots, and its text in lower case words."""

    intent: str
    key: Key
    text: str


class Answer(NamedTuple):
    """What the agent has to say: an intent and key for `agent_line`."""

    intent: str
    key: Key


Memory = MutableMapping[str, str | Line]
"""What was said earlier in a call: name, color, number, pet, place, and the agent's `last` line."""

TOLD = ("name", "color", "number", "pet", "place")

USER_FIELDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OPERATIONS, ("a", "b")),
    **dict.fromkeys(("price", "has_item"), ("item",)),
    **dict.fromkeys(("animal_sound", "animal_legs", "animal_fact"), ("animal",)),
    **dict.fromkeys(("after", "before"), ("when",)),
    **{f"tell_{what}": (what,) for what in TOLD},
    "capital": ("country",),
    "opposite": ("word",),
    "color": ("thing",),
    "month_days": ("month",),
    "spell": ("word",),
    "repeat": ("words",),
}
"""The slot that each part of a user's key fills; intents without a slot are not here."""

AGENT_FIELDS: dict[str, tuple[str, ...]] = {
    **{f"{verb}_{what}": (what,) for verb in ("tell", "recall") for what in TOLD},
    "greet": ("name", "company"),
    "ask_name": ("name",),
    "ask_company": ("company",),
    "arithmetic": ("result",),
    "capital": ("country", "city"),
    "opposite": ("word", "opposite"),
    "color": ("thing", "color"),
    "animal_sound": ("animal", "sound"),
    "animal_legs": ("animal", "number"),
    "animal_fact": ("animal", "fact"),
    "after": ("previous", "next"),
    "before": ("next", "previous"),
    "month_days": ("month", "number"),
    "spell": ("word",),
    "repeat": ("words",),
    "price": ("item", "price"),
    "opens": ("opens",),
    "closes": ("closes",),
    "hours": ("opens", "closes"),
    "address": ("address",),
    "has_item": ("item", "has"),
    "help": ("role",),
}
"""The same for the agent's keys."""


def _slots(fields: tuple[str, ...], key: Key) -> dict[str, str]:
    slots = dict(zip(fields, key, strict=True))
    for noun in ("item", "animal"):
        if noun in slots:
            slots |= {f"an_{noun}": with_article(slots[noun]), f"{noun}s": plural(slots[noun])}
    if "when" in slots:
        slots["kind"] = "day" if slots["when"] in DAYS else "month"
    if fields == ("word",):
        slots["letters"] = " ".join(slots["word"])
    return slots


def phrasings(intent: str, split: Split = "train") -> tuple[str, ...]:
    """The user's phrasings of an intent, with their {slots} open."""
    return tuple(PHRASINGS[intent] if split == "train" else HELDOUT["phrasings"][intent])


def user_line(rng: np.random.Generator, split: Split, intent: str, key: Key | None = None) -> Line:
    """One phrasing of an intent. `split` chooses the phrasing only; without a key a training value is drawn."""
    if key is None:
        keys = USER_KEYS[intent]
        key = keys[rng.integers(len(keys))]
    choices = phrasings(intent, split)
    return filled(intent, key, choices[rng.integers(len(choices))])


def filled(intent: str, key: Key, phrasing: str) -> Line:
    """A user's line: the phrasing with the key in its slots."""
    return Line(intent, key, phrasing.format_map(_slots(USER_FIELDS.get(intent, ()), key)))


def templates(intent: str, key: Key) -> tuple[str, ...]:
    """The wordings of an answer, slots open, with [brackets] round what must be heard."""
    about = ANSWERS["about"].get(intent)
    return tuple(about[key[-1]] if about else ANSWERS[intent])


def wordings(intent: str, key: Key) -> Iterator[str]:
    """Every way to say an answer, brackets kept."""
    slots = _slots(AGENT_FIELDS.get(intent, ()), key)
    for template in templates(intent, key):
        yield template.format_map(slots)


def plain(wording: str) -> str:
    """A wording without its brackets: the text that is spoken."""
    return wording.replace("[", "").replace("]", "")


def parts(wording: str) -> list[str]:
    """What stands in the brackets of a wording, in order, without a leading article."""
    return re.findall(r"\[(?:an? |the )?(.*?)\]", wording)


def agent_lines(intent: str, key: Key) -> list[Line]:
    """Every wording of an answer as a line."""
    return [Line(intent, key, plain(wording)) for wording in wordings(intent, key)]


def agent_line(rng: np.random.Generator, intent: str, key: Key) -> Line:
    """One wording of an answer."""
    lines = agent_lines(intent, key)
    return lines[rng.integers(len(lines))]


def answer_key(intent: str, user_key: Key, facts: Facts, memory: Mapping[str, str | Line]) -> Answer | None:
    """The right answer to a user's line, the fallback's where the prompt or the call does not hold it.

    `facts` are those of the role prompt: no company means an assistant. None means that the agent stays quiet. For
    `again` it is the intent and key of the agent's last line; its wording is that of `memory["last"]`.
    """
    if intent == "backchannel":
        return None
    if intent == "again":
        last = memory.get("last")
        return Answer(last.intent, last.key) if isinstance(last, Line) else Answer("unknown", ())
    if intent.startswith("recall_"):
        told = memory.get(intent.removeprefix("recall_"))
        return Answer(intent, (told,)) if isinstance(told, str) else Answer("not_told", ())
    answer = _from_world(intent, user_key) or _from_facts(intent, user_key, facts)
    return answer or Answer(intent, user_key)


def _from_world(intent: str, user_key: Key) -> Answer | None:
    """The answers that never change; None for the others."""
    if intent in THINGS:
        return Answer(intent, (*user_key, THINGS[intent][user_key[0]]))
    if intent in OPERATIONS:
        return Answer("arithmetic", (result(intent, *user_key),))
    if intent in ("after", "before"):
        return Answer(intent, (*user_key, following(user_key[0], 1 if intent == "after" else -1)))
    return None


def _from_facts(intent: str, user_key: Key, facts: Facts) -> Answer | None:
    """The answers that the role prompt decides, whether it holds the fact or not; None for the others."""
    known: Key
    match intent:
        case "help":
            return Answer("help", ("service" if facts.company else "assistant",))
        case "ask_name":
            return Answer("ask_name", (facts.name,)) if facts.name else Answer("no_name", ())
        case "ask_role" | "ask_company":
            return Answer("ask_company", (facts.company,)) if facts.company else Answer("ask_role", ())
        case "price":
            known = tuple(price for item, price in facts.prices if item == user_key[0])
        case "has_item":
            known = (("yes" if user_key[0] in dict(facts.prices) else "no"),) if facts.company else ()
        case "opens" | "closes" | "address":
            value = {"opens": facts.opens, "closes": facts.closes, "address": facts.address}[intent]
            known = (value,) if value else ()
        case "hours":
            known = (facts.opens, facts.closes) if facts.opens and facts.closes else ()
        case _:
            return None
    return Answer(intent, (*user_key, *known)) if known else Answer("unknown_fact", ())


def remember(memory: Memory, user_line: Line | None, agent_line: Line | None) -> None:
    """Note what the user told and what the agent said last; either may be missing."""
    if user_line and user_line.intent.startswith("tell_"):
        memory[user_line.intent.removeprefix("tell_")] = user_line.key[0]
    if agent_line:
        memory["last"] = agent_line
