"""Sentences out of a text that is still being written, each as soon as its end is certain."""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST = 300
"""Characters after which a sentence is cut at a comma or a space, end or no end: nobody waits for more."""

_NEVER_LAST = frozenset(
    "adm al approx apt ave blvd ca capt cf col cm dept dr e.g eg esp est ext figs fr gen gov hon i.e ie lbs lt maj max "
    "messrs mr mrs ms mt nr pp pres prof rep rev sen sgt st ste vs viz".split()
)
"""A name or a number follows these, whatever it begins with."""

_MAYBE_LAST = frozenset("a.m p.m bros co corp ed etc inc jr ltd no nos fig sec min p pt sq sr u.k u.s vol".split())
_CALENDAR = frozenset("jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri".split())
"""With these a sentence may end: only a small letter or a digit shows that it goes on."""

_END = re.compile(r"(?P<mark>[.!?…]+)(?P<closing>[\"'”’»)\]*_]*)\s+$")
_EAST_ASIAN_END = re.compile(r"[。！？][”’」』）]*$")
_INITIALS = re.compile(r"(?:^|[^\w.])(?:[A-HJ-Z]|[A-Za-z](?:\.[A-Za-z])+)$")
_LAST_WORD = re.compile(r"([\w.]+)$")
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*(?:\d{1,2}|[a-zA-Z])$")
_FENCE = "```"


class SentenceSplitter:
    """Cuts a stream of any pieces: what comes out does not depend on where they were cut.

    A sentence ends at its mark and what closes it (quotes, brackets), once the first letter of the next shows that it
    was no abbreviation, initial or number; at a new line; and nowhere between two fences of three backquotes.
    """

    def __init__(self) -> None:
        self._text = ""
        self._code: list[str] = []
        """What is kept of an open block of code: it may be long, and is looked at when it is over."""
        self._n_quotes = 0

    def push(self, text: str) -> Iterator[str]:
        """The sentences that are complete with this."""
        for character in text:
            if self._code:
                self._code.append(character)
                if self._is_fence(character):
                    self._text, self._code = self._text + "".join(self._code), []
                continue
            if (end := self._end(character)) is not None:
                sentence, self._text = self._text[:end].strip(), self._text[end:]
                if sentence:
                    yield sentence
            if self._is_fence(character):
                self._code.append(character)
            else:
                self._text += character

    def flush(self) -> Iterator[str]:
        """The text is over: what is left of it."""
        rest, self._text, self._code, self._n_quotes = (self._text + "".join(self._code)).strip(), "", [], 0
        if rest:
            yield rest

    def _is_fence(self, character: str) -> bool:
        """Whether the third backquote of a fence has come."""
        self._n_quotes = self._n_quotes + 1 if character == "`" else 0
        if self._n_quotes == len(_FENCE):
            self._n_quotes = 0
            return True
        return False

    def _end(self, following: str) -> int | None:
        """Where what is kept can be cut, now that a character is `following`."""
        text = self._text
        if text.endswith("\n") and text.strip():
            return len(text)
        if _EAST_ASIAN_END.search(text) and following not in "。！？”’」』）":
            return len(text)
        if text[-1:].isspace() and not following.isspace() and (found := _END.search(text)):
            return None if _goes_on(text[: found.start()], found, following) else len(text)
        return _cut(text) if len(text) > LONGEST else None


def _goes_on(before: str, end: re.Match[str], following: str) -> bool:
    """Whether the mark after `before` ends nothing, as `following` is the next letter."""
    if following.islower() and (end["mark"] in ("...", "…") or end["closing"]):
        return True  # '"Stop!" he said'
    if end["mark"] != ".":
        return False
    found = _LAST_WORD.search(before)
    word = found[1].lower() if found else ""
    if word in _NEVER_LAST or _LIST_NUMBER.search(before):
        return True
    if word in _MAYBE_LAST or word in _CALENDAR:
        return following.islower() or following.isdigit()
    return _INITIALS.search(before) is not None


def _cut(text: str) -> int:
    for mark in (";", ",", " "):
        if (at := text.rfind(mark, LONGEST // 3)) > 0:
            return at + 1
    return len(text)


def split_sentences(text: str) -> list[str]:
    """The sentences of a whole text."""
    splitter = SentenceSplitter()
    return [*splitter.push(text), *splitter.flush()]
