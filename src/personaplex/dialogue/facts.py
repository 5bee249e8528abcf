"""The facts of a role, and the role prompts that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from personaplex.dialogue.numbers import SPOKEN, clock, digits
from personaplex.dialogue.world import BUSINESSES, HELDOUT, ITEMS, KINDS_OF_STREET, PROMPTS, VALUES, Split, with_article

# Presets of personaplex.text, which lies above this package; a test holds them equal.
PRESETS = (
    "You are a helpful assistant. Answer questions clearly and concisely.",
    "You are a helpful assistant. Listen carefully to what the user says, then respond directly to their question or "
    "request. Stay on topic. Be concise.",
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way.",
)


@dataclass(frozen=True)
class Facts:
    """What a role prompt says, as spoken words. A company makes it a service role; an assistant has a name at most."""

    name: str | None = None
    company: str | None = None
    business: str | None = None
    prices: tuple[tuple[str, str], ...] = ()
    opens: str | None = None
    closes: str | None = None
    address: str | None = None


def _one(rng: np.random.Generator, values: tuple[str, ...] | list[str]) -> str:
    return values[rng.integers(len(values))]


def sample_address(rng: np.random.Generator, split: Split, street: str | None = None) -> str:
    """A number, a street (one of the split's unless it is given) and its kind: "twelve oak street"."""
    number = SPOKEN[rng.integers(1, 100)]
    return f"{number} {street or _one(rng, VALUES[split].streets)} {_one(rng, KINDS_OF_STREET)}"


def sample_facts(rng: np.random.Generator, split: Split) -> Facts:
    """The facts of a service role: always a name, company and business, 1 to 4 items, often hours and an address."""
    values = VALUES[split]
    n_items = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.25, 0.1]))
    items = rng.choice(len(ITEMS), n_items, replace=False)
    opens, closes = values.hours[rng.integers(len(values.hours))]
    said = rng.random()
    # Long prompts cost frames before the first word: many items leave no room for an address.
    p_address = {1: 0.8, 2: 0.7, 3: 0.5 if said >= 0.75 else 0.0, 4: 0.0}[n_items]
    return Facts(
        name=_one(rng, values.names),
        company=_one(rng, values.companies),
        business=_one(rng, BUSINESSES),
        prices=tuple((ITEMS[i], _one(rng, values.prices)) for i in items),
        opens=opens if said < 0.75 else None,
        closes=closes if said < 0.65 or 0.75 <= said < 0.85 else None,
        address=sample_address(rng, split) if rng.random() < p_address else None,
    )


def _title(words: str) -> str:
    return " ".join(word if word == "and" else word.capitalize() for word in words.split())


def _time(time: str, half: str, in_digits: bool) -> str:
    text = clock(time) if in_digits else time
    return f"{text} {half}" if half and time != "noon" else text


def _priced(rng: np.random.Generator, facts: Facts, in_digits: bool) -> list[str]:
    shown = [(item, f"${digits(price)}" if in_digits else f"{price} dollars") for item, price in facts.prices]
    joined = rng.random() < 0.7
    style = _one(rng, PROMPTS["price_joined" if joined else "prices"])
    said = [
        style.format(
            an_item=with_article(i), An_item=with_article(i).capitalize(), item=i, Item=i.capitalize(), price=p
        )
        for i, p in shown
    ]
    if not joined or not said:
        return said
    text = ", ".join(said)
    return [f"{text[0].upper()}{text[1:]}."]


def _address(address: str, in_digits: bool) -> str:
    *number, street, kind = address.split()
    return f"{digits(' '.join(number)) if in_digits else ' '.join(number)} {_title(f'{street} {kind}')}"


def role_prompt(rng: np.random.Generator, facts: Facts, split: Split) -> str:
    """The prompt of a service role: an opening, then the facts in any order, a quarter of the time in digits."""
    in_digits = bool(rng.random() < 0.25)
    said = _priced(rng, facts, in_digits)
    am, pm = ("am", "pm") if rng.random() < 0.6 else ("", "")
    opens = _time(facts.opens, am, in_digits) if facts.opens else None
    closes = _time(facts.closes, pm, in_digits) if facts.closes else None
    if opens and closes:
        said.append(_one(rng, PROMPTS["hours"]).format(opens=opens, closes=closes))
    elif opens or closes:
        said.append(_one(rng, PROMPTS["opens" if opens else "closes"]).format(opens=opens, closes=closes))
    if facts.address:
        said.append(_one(rng, PROMPTS["address"]).format(Address=_address(facts.address, in_digits)))
    said = [said[i] for i in rng.permutation(len(said))]
    openings = PROMPTS["openings"] if split == "train" else HELDOUT["openings"]
    opening = _one(rng, openings).format(
        Name=_title(facts.name or "nobody"), Company=_title(facts.company or ""), a_business=facts.business
    )
    return " ".join(part for part in [opening, _one(rng, PROMPTS["leads"]), *said] if part)


def assistant_prompt(rng: np.random.Generator, name: str | None, split: Split) -> str:
    """The prompt of an assistant, with a name or without."""
    texts = [*PROMPTS["assistants"], *PRESETS] if split == "train" else HELDOUT["assistants"]
    text = _one(rng, texts)
    if not name:
        return text
    naming = _one(rng, PROMPTS["named"]).format(Name=_title(name))
    return f"{naming} {text}" if rng.random() < 0.5 else f"{text} {naming}"
