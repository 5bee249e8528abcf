"""A few rules that answer where there is no language model: for demonstrations and tests, offline.

It is no language model, and its name says so wherever it appears. The manner of its answers follows words of the role
prompt ("witty", "precise", "reflective"), so that personas differ with it too.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import NamedTuple

from personaplex.cascade.engine import EngineSpec, Message

NAME = "rule-based responder (no language model)"

_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"\b(?:hello|hi|hey|good (?:morning|evening|afternoon))\b(?!.*\?)\W*$",
        ("Hello.", "Hello there.", "Good to hear you."),
    ),
    (r"\b(?:bye|goodbye|see you)\b", ("Goodbye.", "Until next time.")),
    (r"\bthank(?:s| you)\b", ("You are welcome.", "With pleasure.")),
    (r"\b(?:your name|who are you|what are you)\b", ("I am {name}, a few rules and no language model.",)),
    (r"\bwhat(?:'s| is)? (?:the )?time\b|\bwhat time is it\b", ("It is {time}.",)),
    (r"\b(?:opening hours|open|close)\b.*", ("We are open from nine to five.", "The opening hours are nine to five.")),
    (r"\b(?:price|cost|how much)\b", ("Labor costs sixty dollars an hour.",)),
    (r"\b(?:ship|shipped|shipping|deliver\w*|replacement)\b", ("The replacement part ships in three days.",)),
    (r"\bhelp\b", ("I can answer a few simple questions.",)),
)
"""What is asked, and answers to it; the first rule that fits is taken."""

_NUMBERS = {
    word: n for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_SUM = re.compile(r"\b(\w+) (plus|minus|times) (\w+)\b")
_COMMON = frozenset(
    "a about all am an and any are as at be been but by can could did do does for from get give had has have he her "
    "him his how i if in is it its just know like may me my no not of on one or our please say she so some tell that "
    "the their them then there they this to told up us was we were what when where which who why will with would yes "
    "you your".split()
)


class Manner(NamedTuple):
    """How things are said: before an answer, after it, and how many sentences it takes."""

    before: tuple[str, ...] = ("",)
    after: tuple[str, ...] = ("",)


_MANNERS: tuple[tuple[str, Manner], ...] = (
    (
        r"witty|jok|humou?r",
        Manner(
            ("Ha, good one.", "Oh, I like that question!", "Well, well!"),
            ("And you, what made you ask?", "Not bad for a handful of rules, is it?", "Shall we go on?"),
        ),
    ),
    (
        r"precise|technical|exact",
        Manner(("Answer one of one.", "To be exact:"), ("Certainty: 100 percent, by rule.", "Source: one fixed rule.")),
    ),
    (
        r"reflective|philosoph",
        Manner(
            ("Let me think about that for a while.", "There is more than one side to it."),
            (
                "And yet, what do we really know? Every answer is the beginning of a question.",
                "Perhaps the asking matters more than the answer. That is a thought to keep.",
            ),
        ),
    ),
)


class Responder:
    """The rules. `temperature` chooses among ways of saying it: 0 always takes the first."""

    name = NAME

    async def check(self) -> None:
        """It can always answer."""

    async def answer(
        self,
        messages: Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """Word by word; a word counts as a token."""
        system = " ".join(m.content for m in messages if m.role == "system")
        asked = next((m.content for m in reversed(messages) if m.role == "user"), "")
        draw = random.Random(f"{seed} {len(messages)}")

        def pick(ways: Sequence[str]) -> str:
            return draw.choice(ways) if temperature else ways[0]

        manner = next((manner for words, manner in _MANNERS if re.search(words, system, re.IGNORECASE)), Manner())
        text = " ".join(filter(None, (pick(manner.before), pick(_fact(asked, system)), pick(manner.after))))
        for word in re.findall(r"\S+\s*", text)[:max_tokens]:
            yield word

    async def close(self) -> None:
        """Nothing to free."""


def _fact(asked: str, system: str) -> tuple[str, ...]:
    asked = asked.lower()
    if (found := _SUM.search(asked)) and (n := _arithmetic(*found.groups())) is not None:
        return (f"{found[0]} is {n}.".capitalize(),)
    for pattern, answers in _RULES:
        if re.search(pattern, asked):
            named = re.search(r"[Yy]our name is ([A-Z]\w+)", system)
            details = {"name": named[1] if named else "the responder", "time": f"{datetime.now():%H:%M}"}
            return tuple(answer.format(**details) for answer in answers)
    keywords = [word for word in re.findall(r"[a-z']+", asked) if word not in _COMMON]
    if keywords:
        about = max(keywords, key=len)
        return (f"You said something about {about}.", f"I have no rule about {about}.", f"Tell me more about {about}.")
    return ("I did not quite get that.", "Please say that again.")


def _arithmetic(left: str, sign: str, right: str) -> int | None:
    try:
        a, b = (_NUMBERS[word] if word in _NUMBERS else int(word) for word in (left, right))
    except ValueError:
        return None
    return {"plus": a + b, "minus": a - b, "times": a * b}[sign]


ENGINE = EngineSpec(
    "responder",
    "thinker",
    Responder,
    "a few rules; NO language model, for demonstrations and tests",
    "nothing to install",
    "as this project",
    remark="rules, no language model",
)
