"""Whether an answer is right: the words that must be in it, and the grammar a recogniser hears it with."""

from __future__ import annotations

import re

from personaplex.dialogue.line import Line, parts, plain, wordings
from personaplex.dialogue.numbers import SPOKEN, numbers_in
from personaplex.dialogue.world import (
    ANSWERS,
    DAYS,
    ITEMS,
    KINDS_OF_STREET,
    LISTS,
    MONTHS,
    THINGS,
    VALUES,
    Key,
    plural,
    with_article,
)


def key_words(line: Line) -> tuple[str, ...]:
    """The words that must be heard, in order, in an answer of this wording. Raises ValueError for no agent's line."""
    for wording in wordings(line.intent, line.key):
        if plain(wording) == line.text:
            return tuple(" ".join(parts(wording)).split())
    raise ValueError(f"{line.text!r} is no wording of the answer {line.intent} {line.key}")


def is_right(said: str, intent: str, key: Key) -> bool:
    """Whether `said` gives the answer in any wording: its key phrases in order, and no number but the right ones."""
    words = re.findall(r"[a-z']+", said.lower())
    return any(_holds(words, wording) for wording in wordings(intent, key))


def _holds(words: list[str], wording: str) -> bool:
    at = 0
    for part in parts(wording):
        phrase = part.split()
        starts = (i for i in range(at, len(words) - len(phrase) + 1) if words[i : i + len(phrase)] == phrase)
        start = next(starts, None)
        if start is None:
            return False
        at = start + len(phrase)
    about_numbers = numbers_in(" ".join(parts(wording)).split())
    return not about_numbers or numbers_in(words) == numbers_in(plain(wording).split())


def _slot_values() -> dict[str, list[str]]:
    """What each slot can hold; <rules> where values are made of parts, so that the grammar stays small."""
    both = list(VALUES.values())
    companies = [company.split() for values in both for company in values.companies]
    animals = dict.fromkeys(a for table in ("animal_sound", "animal_legs", "animal_fact") for a in THINGS[table])
    of = {
        "name": [name for values in both for name in values.names],
        "adjective": [words[0] for words in companies if len(words) == 2],
        "noun": [words[1] for words in companies if len(words) == 2],
        "surname": [words[0] for words in companies if len(words) == 3],
        "kin": [words[2] for words in companies if len(words) == 3],
        "company": ["<adjective> <noun>", "<surname> and <kin>"],
        "small": list(SPOKEN[:20]),
        "digit": list(SPOKEN[1:10]),
        "tens": list(SPOKEN[20::10]),
        "price": ["<small>", "<tens>", "<tens> <digit>"],
        "result": ["<price>"],
        "number": ["<price>", "no"],
        "opens": [time for values in both for time in values.opens],
        "closes": [time for values in both for time in values.closes],
        "street": [street for values in both for street in values.streets],
        "kind_of_street": list(KINDS_OF_STREET),
        "address": ["<price> <street> <kind_of_street>"],
        "item": list(ITEMS),
        "an_item": [with_article(item) for item in ITEMS],
        "an_animal": [with_article(animal) for animal in animals],
        "animals": [plural(animal) for animal in animals],
        "country": list(THINGS["capital"]),
        "city": list(THINGS["capital"].values()),
        "word": list(THINGS["opposite"]),
        "opposite": list(THINGS["opposite"].values()),
        "thing": list(THINGS["color"]),
        "color": [*THINGS["color"].values(), *LISTS["tell_color"]],
        "sound": list(THINGS["animal_sound"].values()),
        "fact": list(THINGS["animal_fact"].values()),
        "next": [*DAYS, *MONTHS],
        "previous": [*DAYS, *MONTHS],
        "month": list(MONTHS),
        "letters": [" ".join(word) for word in LISTS["spell"]],
        "words": list(LISTS["repeat"]),
        "pet": list(LISTS["tell_pet"]),
        "place": list(LISTS["tell_place"]),
    }
    return {slot: list(dict.fromkeys(values)) for slot, values in of.items()}


def _agent_templates() -> dict[str, list[str]]:
    found = {intent: list(texts) for intent, texts in ANSWERS.items() if intent != "about"}
    found |= {intent: [t for texts in about.values() for t in texts] for intent, about in ANSWERS["about"].items()}
    return {intent: [plain(text) for text in texts] for intent, texts in found.items()}


def grammar() -> str:
    """A JSGF grammar of every answer with all slots open, over training and held-out values; the rule is <answer>."""
    texts = _agent_templates()
    lines = ["#JSGF V1.0;", "grammar answers;"]
    for slot, values in _slot_values().items():
        lines.append(f"<{slot}> = {' | '.join(values)};")
    for intent, choices in texts.items():
        opened = (re.sub(r"\{(\w+)\}", r"<\1>", choice) for choice in choices)
        lines.append(f"<answer_{intent}> = {' | '.join(opened)};")
    lines.append(f"public <answer> = {' | '.join(f'<answer_{intent}>' for intent in texts)};")
    return "\n".join(lines) + "\n"


def vocabulary() -> set[str]:
    """Every word that an agent can say."""
    groups = [*_agent_templates().values(), *_slot_values().values()]
    return {word for texts in groups for text in texts for word in re.sub(r"\{\w+\}|<\w+>", " ", text).split()}
