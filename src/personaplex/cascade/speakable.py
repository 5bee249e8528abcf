"""What of a written text can be said: marks of markup, emoji and code are left out, addresses are read as people do."""

from __future__ import annotations

import re
import unicodedata

CODE = "The code is on the screen."
"""Said instead of a block of code."""

_RULES = (
    (re.compile(r"```.*?(?:```|$)", re.DOTALL), f" {CODE} "),
    (re.compile(r"!?\[([^\]]*)\]\([^)\s]*(?:\s[^)]*)?\)"), r"\1"),
    (re.compile(r"(?m)^\s*(?:[-*•]|#{1,6}|>)\s+"), ""),
    (re.compile(r"(?m)^\s*\|?(?:\s*:?-{3,}:?\s*\|?)+\s*$"), ""),
    (re.compile(r"(\*\*|__|~~|`)"), ""),
    (re.compile(r"(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)"), ""),
    (re.compile(r"(?:\s*\|\s*)+"), ", "),
)
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]]*[^\s<>\"')\].,;:!?]", re.IGNORECASE)
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")
_SIGNS = {
    "&": " and ",
    "%": " percent",
    "=": " equals ",
    "→": " to ",
    "°C": " degrees Celsius",
    "°F": " degrees Fahrenheit",
}


def speakable(text: str) -> str:
    """The text as it should be said, on one line; empty when nothing of it can be."""
    for pattern, said in _RULES:
        text = pattern.sub(said, text)
    text = _URL.sub(lambda found: _address(found[0]), text)
    text = _EMAIL.sub(lambda found: found[0].replace("@", " at ").replace(".", " dot "), text)
    for sign, said in _SIGNS.items():
        text = text.replace(sign, said)
    text = "".join(c for c in text if not _is_picture(c))
    text = " ".join(text.split()).replace(" ,", ",").strip(", ")
    return text if any(c.isalnum() for c in text) else ""


def _address(url: str) -> str:
    """Only the host: nobody wants to hear the rest."""
    host = re.sub(r"^\w+://", "", url).split("/")[0].split("?")[0].split("@")[-1].split(":")[0]
    return host.removeprefix("www.").replace(".", " dot ")


def _is_picture(character: str) -> bool:
    """Emoji and other symbols, what joins and colours them, and characters that stand for nothing."""
    if character in "\ufe0e\ufe0f\u20e3":
        return True
    return unicodedata.category(character) in ("So", "Sk", "Cn", "Co", "Cs", "Cf", "Cc") and not character.isspace()
