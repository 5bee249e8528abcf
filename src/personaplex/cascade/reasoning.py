"""What a reasoning model says aloud: its text without what it thinks, however that was cut into pieces."""

from __future__ import annotations

import re

_OPENING = (
    "<think>", "<thinking>", "[THINK]", "<longcat_think>", "<|think:start|>", "<|channel>thought",
    "<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>",
)  # fmt: skip
_CLOSING = (
    "</think>", "</thinking>", "[/THINK]", "</longcat_think>", "<|think:end|>", "<channel|>",
    "<|channel|>final<|message|>",
)  # fmt: skip
_TAGS = _OPENING + _CLOSING
_TAG = re.compile("|".join(map(re.escape, _TAGS)))


class Spoken:
    """Text goes in in pieces of any size; what is meant to be heard comes out. `thinks`: it begins within a thought.

    What looks like the beginning of a tag waits for the next piece. A thought that is not closed is never heard.
    """

    def __init__(self, *, thinks: bool = False) -> None:
        self.thinks = thinks
        self._held = ""
        self._last = " "
        self._after_tag = False

    def push(self, text: str) -> str:
        """Take a piece of text; what of it, and of what was held, can be said."""
        held, said, start = self._held + text, "", 0
        for tag in _TAG.finditer(held):
            said += self._say(held[start : tag.start()])
            self.thinks = tag[0] in _OPENING
            self._after_tag = True
            start = tag.end()
        end = len(held) - max(_n_begun(held[start:], tag) for tag in _TAGS)
        self._held = held[end:]
        return said + self._say(held[start:end])

    def flush(self) -> str:
        """There will be no more: what was held."""
        held, self._held = self._held, ""
        return self._say(held)

    def _say(self, text: str) -> str:
        if self.thinks:
            return ""
        if self._after_tag and self._last.isspace():
            text = text.lstrip()  # where a thought was, one space is enough
        if text:
            self._last, self._after_tag = text[-1], False
        return text


def begins_thinking(prompt: str) -> bool:
    """Whether a prompt ends in the middle of a thought, so that the answer goes on with it."""
    return prompt.rstrip().endswith(_OPENING)


def _n_begun(text: str, tag: str) -> int:
    """Characters at the end of `text` that `tag` may begin with."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
