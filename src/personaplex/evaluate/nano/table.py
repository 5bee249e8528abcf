"""The table: every row counted from items, conversations and what a recogniser heard, beside its goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from personaplex.dialogue import is_new, is_right
from personaplex.evaluate.nano import outcome
from personaplex.evaluate.nano.conversation import Conversation
from personaplex.evaluate.nano.items import Item
from personaplex.evaluate.row import Row, median, share
from personaplex.evaluate.statistics import ErrorRate, quantile, words_of
from personaplex.units import SAMPLE_RATE

Pair = tuple[Item, Conversation]


def rows(
    items: Sequence[Item], conversations: Mapping[int, Conversation], heard: Mapping[int, Sequence[str]]
) -> list[Row]:
    """Every row that these results have something for; `heard` holds a recogniser's words by item."""
    pairs = [(item, conversations[item.number]) for item in items if item.number in conversations]
    made = [*_answers(pairs), *_heard(pairs, heard), *_calls(pairs), *_turn_taking(pairs), *_long(pairs)]
    return [row for row in made if row.n]


def right(pair: Pair) -> bool:
    """Whether the text of the last answer says what it must."""
    item, conversation = pair
    expected = item.expected
    return expected is not None and is_right(outcome.answer(conversation, len(item.turns) - 1), *expected)


def _of(pairs: Sequence[Pair], test: str, *groups: str) -> list[Pair]:
    return [p for p in pairs if p[0].test == test and (not groups or p[0].group in groups)]


_FACTS = ("fact", "fresh fact")
_SETS = (
    ("trained", "trained phrasing, trained voices", 0.97, 0.95),
    ("phrasing", "held-out phrasing", 0.90, None),
    ("voice", "held-out phrasing and held-out synthetic voice", 0.80, None),
    ("natural", "held-out natural-sounding voice (awb), trained phrasing", 0.60, None),
    ("natural phrasing", "held-out natural-sounding voice (awb), held-out phrasing", None, None),
)


def _answers(pairs: Sequence[Pair]) -> list[Row]:
    made = []
    for test, name, goal, facts_goal in _SETS:
        made += [
            share(f"{name}: answer right", map(right, _of(pairs, test)), goal),
            share(f"{name}: facts from the prompt", map(right, _of(pairs, test, *_FACTS)), facts_goal),
            share(f"{name}: facts that are held out", map(right, _of(pairs, test, "fresh fact"))),
            share(f"{name}: all else", map(right, _of(pairs, test, "other"))),
        ]
    new = [p for p in _of(pairs, "phrasing") if is_new(p[0].asks, p[0].turns[-1].text)]
    made.append(share("held-out phrasing, more than a word from every trained one: answer right", map(right, new)))
    facts = _of(pairs, "trained", *_FACTS)
    made.append(share("facts asked without the role prompt", map(right, _of(pairs, "bare"))))
    made.append(share("chance: another item's answer to the same kind of fact", _chance(facts)))
    return made


def _chance(pairs: Sequence[Pair]) -> list[bool]:
    """Each item against what was answered to the next item that asks for the same kind of fact."""
    found = []
    for i, (item, _) in enumerate(pairs):
        assert item.expected is not None
        others = [p for p in (*pairs[i + 1 :], *pairs[:i]) if p[0].asks == item.asks]
        if others:
            other, conversation = others[0]
            found.append(is_right(outcome.answer(conversation, len(other.turns) - 1), *item.expected))
    return found


def _heard(pairs: Sequence[Pair], heard: Mapping[int, Sequence[str]]) -> list[Row]:
    listened = [p for p in _of(pairs, "trained") if p[0].number in heard]
    if not listened:
        return []

    def is_heard(item: Item, number: int) -> bool:
        return item.expected is not None and is_right(" ".join(heard[number]), *item.expected)

    def meant(pair: Pair) -> list[str]:
        return words_of(outcome.answer(pair[1], len(pair[0].turns) - 1))

    said = [(meant(p), list(heard[p[0].number])) for p in listened if meant(p)]
    rate = ErrorRate.over(said)
    # Half the list away: an order by group must not pair an item with its own kind more often than chance does.
    order = np.random.default_rng(0).permutation(len(listened))
    shuffled = [is_heard(listened[i][0], listened[j][0].number) for i, j in zip(order, np.roll(order, 1), strict=True)]
    return [
        share("trained phrasing: answer right as heard", [is_heard(i, i.number) for i, _ in listened], 0.85),
        share("facts right as heard", [is_heard(i, i.number) for i, _ in listened if i.group in _FACTS]),
        Row("the recogniser hears the text that the model meant: WER", rate.value, rate.interval, rate.n, 0.08, True),
        share("the same grammar on shuffled answers: right as heard", shuffled, 0.10, at_most=True),
    ]


def voices(
    items: Sequence[Item], conversations: Mapping[int, Conversation], nearest: Callable[[np.ndarray], str]
) -> list[Row]:
    """Whether the model's answers are nearest, of all voices, to the one that it was prompted with."""
    told = []
    for item in items:
        if item.listened and item.number in conversations:
            sound = outcome.sound_of_answer(conversations[item.number])
            if len(sound) >= SAMPLE_RATE // 2:  # a word's length says little about a voice
                told.append(nearest(sound.astype(np.float32) / 32768) == item.voice)
    return [share("voice told apart: nearest of 18 by a simple embedding", told, 0.90)]


def _calls(pairs: Sequence[Pair]) -> list[Row]:
    def survives(pair: Pair) -> bool:
        item, talk = pair
        last = len(item.turns) - 1
        return not outcome.is_premature(item, talk, last) and not outcome.is_missing(item, talk, last) and right(pair)

    paused = _of(pairs, "pause")
    waited = [not outcome.is_premature(item, talk, len(item.turns) - 1) for item, talk in paused]
    return [
        share("recalls what was said earlier in the call", map(right, _of(pairs, "recall")), 0.85),
        share("survives a pause in mid-sentence: waits, then answers right", map(survives, paused), 0.90),
        share("waits through a pause in mid-sentence", waited),
    ]


def _turn_taking(pairs: Sequence[Pair]) -> list[Row]:
    made = []
    for name, tests in (
        ("trained phrasing", ("trained",)),
        ("everything held out", ("phrasing", "voice", "natural", "natural phrasing")),
    ):
        asked = [p for test in tests for p in _of(pairs, test)]
        goals = (0.02, 0.01) if tests == ("trained",) else (None, None)
        delays = [outcome.delay_ms(item, talk, len(item.turns) - 1) for item, talk in asked]
        made += [
            share(
                f"{name}: answers before the user has finished",
                [outcome.is_premature(item, talk, len(item.turns) - 1) for item, talk in asked],
                goals[0],
                at_most=True,
            ),
            share(
                f"{name}: never answers",
                [outcome.is_missing(item, talk, len(item.turns) - 1) for item, talk in asked],
                goals[1],
                at_most=True,
            ),
            median(f"{name}: first word after the user's end, median", [d for d in delays if d is not None]),
        ]
    unasked = [outcome.speaks_unasked(*p) for p in _of(pairs, "quiet", "silence", "noise")]
    made.append(share("silent or noise-only input answered", unasked, 0.02, at_most=True))
    made.append(
        share(
            "other sounds that are not speech answered",
            [outcome.speaks_unasked(*p) for p in _of(pairs, "quiet", "sound")],
        )
    )
    cut = _of(pairs, "interruption")
    stops = [ms for item, talk in cut if (ms := outcome.stop_ms(item, talk, 1)) is not None]
    p90 = quantile(stops, 0.9)
    made += [
        median("stops after interruption, median", stops, 400),
        Row("stops after interruption, 90th percentile", p90, (math.nan, math.nan), len(stops), unit="ms"),
        share("answers the interrupting question right", map(right, cut)),
    ]
    nodded = [p for p in _of(pairs, "backchannel") if outcome.stop_ms(p[0], p[1], 1) is not None]
    made.append(share("goes on through a user's backchannel", map(_went_on, nodded)))
    return made


def _went_on(pair: Pair) -> bool:
    """Whether the answer that the backchannel fell into was said to its end."""
    item, conversation = pair
    expected = item.turns[0].expected
    text = " ".join(outcome.answer(conversation, turn) for turn in range(len(item.turns)))
    return expected is not None and is_right(text, *expected)


def _long(pairs: Sequence[Pair]) -> list[Row]:
    return [
        share(
            f"a fact of the prompt asked after {windows} windows of 375 frames", map(right, _of(pairs, "long", windows))
        )
        for windows in sorted({item.group for item, _ in _of(pairs, "long")}, key=int)
    ]
