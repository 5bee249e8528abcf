"""What nano can talk about: nothing held out is ever generated, and right answers are told from wrong ones."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from personaplex import text
from personaplex.dialogue import (
    USER_INTENTS,
    USER_KEYS,
    VALUES,
    Answer,
    Facts,
    Line,
    Memory,
    agent_line,
    agent_lines,
    agent_plan,
    answer_key,
    assistant_prompt,
    grammar,
    is_new,
    is_right,
    key_words,
    phrasings,
    remember,
    role_prompt,
    sample_facts,
    user_line,
    user_plan,
    vocabulary,
)
from personaplex.dialogue.facts import PRESETS
from personaplex.dialogue.line import filled
from personaplex.dialogue.numbers import SPOKEN, clock, numbers_in, spoken_time
from personaplex.dialogue.world import HELDOUT, PHRASINGS, PROMPTS, plural, with_article

SHOP = Facts("anna", "bright books", "a book shop", (("lamp", "nineteen"), ("chair", "seven")), "nine thirty", "five")
TRAIN, HELD = VALUES["train"], VALUES["heldout"]


@pytest.fixture(scope="module")
def plan() -> list[Line]:
    return agent_plan(np.random.default_rng(1))


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return user_plan(np.random.default_rng(2), 20_000)


def test_numbers_and_times_are_words() -> None:
    assert (SPOKEN[0], SPOKEN[19], SPOKEN[40], SPOKEN[99]) == ("zero", "nineteen", "forty", "ninety nine")
    assert [spoken_time(t) for t in (10, 19, 24, 25, 26, 46)] == [
        "five",
        "nine thirty",
        "noon",
        "twelve thirty",
        "one",
        "eleven",
    ]
    assert [clock(time) for time in ("nine", "nine thirty", "noon")] == ["9", "9:30", "noon"]
    assert numbers_in(["from", "nine", "to", "five", "thirty"]) == ["nine", "five thirty"]


def test_nouns() -> None:
    assert [plural(n) for n in ("lamp", "brush", "battery", "key", "mouse", "radio")] == [
        "lamps", "brushes", "batteries", "keys", "mice", "radios"
    ]  # fmt: skip
    assert with_article("oven") == "an oven"


@pytest.mark.parametrize("intent", USER_INTENTS)
def test_every_intent_has_ninety_phrasings_and_six_more_held_out(intent: str) -> None:
    trained, held = phrasings(intent), phrasings(intent, "heldout")
    assert len({*trained, *held}) == len(trained) + len(held)
    assert len(trained) >= 90
    assert len(held) >= 6


def test_no_phrasing_belongs_to_two_intents_or_splits() -> None:
    seen = [text for intent in USER_INTENTS for split in ("train", "heldout") for text in phrasings(intent, split)]
    assert len(seen) == len(set(seen))


def test_held_out_lists_are_long_enough_and_apart() -> None:
    assert len(HELD.names) >= 60
    assert len(HELD.companies) >= 60
    assert len(HELD.prices) >= 15
    assert len(HELD.streets) >= 20
    for field in ("names", "companies", "prices", "opens", "closes", "hours", "streets"):
        trained, held = getattr(TRAIN, field), getattr(HELD, field)
        assert not {*trained} & {*held}
        assert len({*trained}) == len(trained)
        assert len({*held}) == len(held)
    assert len(TRAIN.names) >= 500
    assert len(TRAIN.companies) >= 1600
    assert len(PROMPTS["openings"]) >= 15
    assert not {*PROMPTS["openings"], *PROMPTS["assistants"]} & {*HELDOUT["openings"], *HELDOUT["assistants"]}


def _patterns(texts: tuple[str, ...]) -> set[str]:
    return {re.sub(r"\\\{\w+\\\}", "[A-Za-z' ]+", re.escape(text)) for text in texts}


@pytest.mark.parametrize("invented", [0.0, 0.5])
def test_training_lines_hold_nothing_held_out(invented: float, lines: list[Line]) -> None:
    plan = agent_plan(np.random.default_rng(1), invented)
    unseen = {*HELD.names, *HELD.streets}
    for line in [*plan, *lines]:
        assert not unseen & {*line.text.split()}
        assert re.fullmatch(r"[a-z']+( [a-z']+)*", line.text)
    held = {filled(i, k, text).text for i in USER_INTENTS for k in USER_KEYS[i] for text in phrasings(i, "heldout")}
    assert not held & {line.text for line in lines}
    keys = {line.intent: {other.key for other in plan if other.intent == line.intent} for line in plan}
    assert not {key[1] for key in keys["price"]} & {*HELD.prices}
    assert not {key[1] for key in keys["greet"]} & {*HELD.companies}
    assert not {key[0] for key in keys["ask_company"]} & {*HELD.companies}
    assert not {key[0] for key in keys["opens"]} & {*HELD.opens}
    assert not {key[0] for key in keys["closes"]} & {*HELD.closes}
    assert not keys["hours"] & {*HELD.hours}


def test_half_of_a_voices_names_are_invented() -> None:
    known, plan = agent_plan(np.random.default_rng(1)), agent_plan(np.random.default_rng(1), invented=0.5)
    assert {line.key[0] for line in known if line.intent == "greet"} <= {*TRAIN.names}
    names, companies = (Counter(line.key[at] for line in plan if line.intent == "greet") for at in (0, 1))
    for said, values in ((names, TRAIN.names), (companies, TRAIN.companies)):
        new = {value: n for value, n in said.items() if value not in values}
        assert len(new) > 400
        assert 0.45 < sum(new.values()) / said.total() < 0.55
    assert {line.key[0] for line in plan if line.intent == "ask_name"} == {*names}
    addresses = [line.key[0].split()[-2] for line in plan if line.intent == "address"]
    assert 0.4 < sum(street not in TRAIN.streets for street in addresses) / len(addresses) < 0.6


def test_training_prompts_hold_nothing_held_out() -> None:
    rng = np.random.default_rng(3)
    unseen = {*HELD.names, *HELD.streets}
    openings = [re.compile(pattern) for pattern in _patterns(tuple(HELDOUT["openings"]))]
    companies = [company.title().replace(" And ", " and ") for company in HELD.companies]
    for _ in range(20_000):
        facts = sample_facts(rng, "train")
        assert facts.name in TRAIN.names
        assert facts.company not in HELD.companies
        assert not {price for _, price in facts.prices} & {*HELD.prices}
        assert facts.opens not in HELD.opens
        assert facts.closes not in HELD.closes
        assert (facts.opens, facts.closes) not in HELD.hours
        prompt = role_prompt(rng, facts, "train")
        assert not unseen & {*re.findall("[a-z]+", prompt.lower())}
        assert not any(pattern.match(prompt) for pattern in openings)
        assert not any(f"{company}." in prompt for company in companies)
    spoken = {assistant_prompt(rng, None, "train") for _ in range(2000)}
    assert not spoken & {*HELDOUT["assistants"]}


def test_presets_are_those_a_user_can_name() -> None:
    assert {*PRESETS} < {*text.PROMPTS.values()}


def test_held_out_facts_are_held_out() -> None:
    rng = np.random.default_rng(4)
    for _ in range(500):
        facts = sample_facts(rng, "heldout")
        assert facts.name in HELD.names
        assert facts.company in HELD.companies
        assert {price for _, price in facts.prices} <= {*HELD.prices}
        if facts.address:
            assert facts.address.split()[-2] in HELD.streets
        assert facts.name.capitalize() in role_prompt(rng, facts, "heldout")


def test_prompts_name_every_fact() -> None:
    rng = np.random.default_rng(5)
    in_digits = 0
    for _ in range(400):
        facts = sample_facts(rng, "train")
        prompt = role_prompt(rng, facts, "train").lower()
        digits = "$" in prompt
        in_digits += digits
        for item, price in facts.prices:
            assert re.search(
                rf"{item}[^,.]* \${SPOKEN.index(price)}\b" if digits else rf"{item}[^,.]* {price} dollars", prompt
            )
        for time in (facts.opens, facts.closes):
            assert time is None or re.search(rf"\b{clock(time) if digits else time}\b", prompt)
        assert facts.address is None or " ".join(facts.address.split()[-2:]) in prompt
    assert 60 < in_digits < 140


def test_plans_have_their_size_and_cover_everything(plan: list[Line], lines: list[Line]) -> None:
    assert 6000 <= len(plan) <= 7500
    assert len(lines) == 20_000
    said = {(line.intent, line.key) for line in lines}
    assert said == {(intent, key) for intent, keys in USER_KEYS.items() for key in keys}
    greeted = [line.key for line in plan if line.intent == "greet"]
    assert {(name,) for name, _ in greeted} == {line.key for line in plan if line.intent == "ask_name"}
    assert {(company,) for _, company in greeted} == {line.key for line in plan if line.intent == "ask_company"}
    facts = ("price", "has_item", "opens", "closes", "hours", "address", "ask_name", "ask_company")
    assert 0.3 < sum(line.intent in facts for line in lines) / len(lines) < 0.4
    assert np.mean([len(line.text.split()) for line in plan]) < 7


def test_closed_answers_are_all_in_the_plan(plan: list[Line]) -> None:
    open_ended = {
        "price",
        "has_item",
        "ask_name",
        "ask_company",
        "hours",
        "address",
        "tell_name",
        "again",
        "backchannel",
    }
    have = {(line.intent, line.key) for line in plan}
    for intent, keys in USER_KEYS.items():
        if intent not in open_ended:
            for key in keys:
                answer = answer_key(intent, key, Facts(), {})
                assert answer in have


def test_the_same_seed_gives_the_same_lines(plan: list[Line]) -> None:
    assert agent_plan(np.random.default_rng(1)) == plan
    assert user_plan(np.random.default_rng(2), 500) == user_plan(np.random.default_rng(2), 500)
    prompts = [role_prompt(rng, sample_facts(rng, "train"), "train") for rng in map(np.random.default_rng, (7, 7, 8))]
    assert prompts[0] == prompts[1] != prompts[2]


def test_answers() -> None:
    def answer(intent: str, *key: str, facts: Facts = SHOP) -> Answer | None:
        return answer_key(intent, key, facts, {})

    assert answer("price", "lamp") == ("price", ("lamp", "nineteen"))
    assert answer("price", "table") == ("unknown_fact", ())
    assert answer("has_item", "chair") == ("has_item", ("chair", "yes"))
    assert answer("has_item", "table") == ("has_item", ("table", "no"))
    assert answer("hours") == ("hours", ("nine thirty", "five"))
    assert answer("opens") == ("opens", ("nine thirty",))
    assert answer("address") == ("unknown_fact", ())
    assert answer("ask_role") == ("ask_company", ("bright books",))
    assert answer("help") == ("help", ("service",))
    assert answer("minus", "twelve", "five") == ("arithmetic", ("seven",))
    assert answer("after", "december") == ("after", ("december", "january"))
    assert answer("before", "monday") == ("before", ("monday", "sunday"))
    assert answer("month_days", "february") == ("month_days", ("february", "twenty eight"))
    assert answer("spell", "fox") == ("spell", ("fox",))
    assert answer("backchannel") is None
    assert answer("again") == ("unknown", ())
    assert answer("price", "lamp", facts=Facts()) == ("unknown_fact", ())
    assert answer("ask_name", facts=Facts()) == ("no_name", ())
    assert answer("ask_company", facts=Facts("bob")) == ("ask_role", ())


def test_what_was_told_is_recalled() -> None:
    memory: Memory = {}
    assert answer_key("recall_name", (), SHOP, memory) == ("not_told", ())
    rng = np.random.default_rng(6)
    reply = agent_line(rng, "tell_name", ("bob",))
    remember(memory, user_line(rng, "train", "tell_name", ("bob",)), reply)
    assert answer_key("again", (), SHOP, memory) == ("tell_name", ("bob",))
    assert memory["last"] is reply
    recalled = answer_key("recall_name", (), SHOP, memory)
    assert recalled == ("recall_name", ("bob",))
    assert "bob" in agent_line(rng, *recalled).text


def test_every_wording_is_right_for_its_own_answer(plan: list[Line]) -> None:
    for line in plan:
        assert is_right(line.text, line.intent, line.key)
        words = iter(line.text.split())
        assert all(word in words for word in key_words(line))
    for one, two in pairwise(line for line in plan if line.intent == "price"):
        if one.key[1] != two.key[1]:
            assert not is_right(one.text, two.intent, two.key)


@pytest.mark.parametrize(
    ("said", "intent", "key"),
    [
        ("uh the lamp is nineteen dollars", "price", ("lamp", "nineteen")),
        ("That is nineteen dollars.", "price", ("lamp", "nineteen")),
        ("we are open from nine thirty to five", "hours", ("nine thirty", "five")),
        ("yes we have umbrella", "has_item", ("umbrella", "yes")),
        ("the capital is paris", "capital", ("france", "paris")),
        ("sorry i do not have that information", "unknown_fact", ()),
        ("f o x", "spell", ("fox",)),
    ],
)
def test_right(said: str, intent: str, key: tuple[str, ...]) -> None:
    assert is_right(said, intent, key)


@pytest.mark.parametrize(
    ("said", "intent", "key"),
    [
        ("a lamp costs twenty nineteen dollars", "price", ("lamp", "nineteen")),
        ("a lamp costs ninety dollars", "price", ("lamp", "nineteen")),
        ("a lamp costs nineteen dollars no seven dollars", "price", ("lamp", "nineteen")),
        ("a lamp costs nineteen", "price", ("lamp", "nineteen")),
        ("we open at nine", "opens", ("nine thirty",)),
        ("we open at nine thirty", "opens", ("nine",)),
        ("we are open from five to nine thirty", "hours", ("nine thirty", "five")),
        ("no we do not have a lamp", "has_item", ("lamp", "yes")),
        ("hello this is bob from bright books how can i help you", "greet", ("anna", "bright books")),
        ("hello this is anna from books bright how can i help you", "greet", ("anna", "bright books")),
        ("that is seventeen", "arithmetic", ("seven",)),
        ("okay your number is five", "wait", ()),
        ("", "unknown", ()),
    ],
)
def test_wrong(said: str, intent: str, key: tuple[str, ...]) -> None:
    assert not is_right(said, intent, key)


def test_key_words_of_a_line_that_is_no_answer() -> None:
    with pytest.raises(ValueError, match="no wording"):
        key_words(Line("price", ("lamp", "nineteen"), "a lamp is cheap"))


def test_grammar_is_closed_and_holds_every_value(plan: list[Line]) -> None:
    jsgf = grammar()
    header, *rules = jsgf.strip().split("\n")
    assert header == "#JSGF V1.0;"
    defined = set()
    for rule in rules[1:]:
        found = re.fullmatch(r"(?:public )?<(\w+)> = ([a-z' |<>_]+);", rule)
        assert found
        assert "| |" not in rule
        defined.add(found[1])
    assert {*re.findall(r"<(\w+)>", jsgf)} == defined
    words = vocabulary()
    assert {word for line in plan for word in line.text.split()} <= words
    assert {
        word for value in (*HELD.names, *HELD.companies, *HELD.streets, *HELD.prices) for word in value.split()
    } <= words
    assert all({*line.text.split()} <= words for line in agent_lines("greet", (HELD.names[0], HELD.companies[0])))


def test_a_held_out_phrasing_is_new_when_no_trained_one_is_a_word_away() -> None:
    held = [(intent, phrasing) for intent, of in HELDOUT["phrasings"].items() for phrasing in of]
    new = [(intent, phrasing) for intent, phrasing in held if is_new(intent, _example(phrasing))]
    assert 40 < len(new) < 120
    for intent, phrasing in held[::7]:
        words, trained = phrasing.split(), [other.split() for other in PHRASINGS[intent]]
        near = any(_edits(words, other) < 2 for other in trained)
        inside = any(f" {phrasing} " in f" {' '.join(other)} " for other in trained)
        assert ((intent, phrasing) in new) == (not near and not inside)
    assert not is_new("price", "what does the pizza cost please"), "held out is what it is asked about"


def _edits(one: list[str], other: list[str]) -> int:
    """Words put in, left out or exchanged."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        above, row = row, [i]
        for j, against in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != against)))
    return row[-1]


def _example(phrasing: str) -> str:
    return re.sub(r"{\w+}", "thing", phrasing)
