"""What something was measured with, as a person reads it: settings, not findings, and no dump of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

FINDINGS = frozenset(
    "passed reasons controls nearest similarity prompts prompts_heard_as perplexity delay_samples frames measured "
    "answers answers_expected sound_seconds talk_seconds left_out shorter_than_input conversations seconds".split()
)
"""In an `about` beside the settings: they came out, and rows and items say them."""

MOST_SHOWN = 80
"""Characters of a value where two are put beside each other."""
_OF_A_MACHINE = frozenset(("cpu", "gpu", "device", "memory_gib", "system"))
"""What a person needs to know of it; the rest, such as the path of a library, is in the JSON file."""
_HASH = re.compile(r"\b[0-9a-f]{32,}\b")


def settings(about: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was found, and what is nested: that is for machines, and in the JSON file."""
    known = {name: value for name, value in about.items() if name not in FINDINGS and _is_plain(value)}
    machine = known.get("machine")
    if isinstance(machine, Mapping):
        known["machine"] = {name: value for name, value in machine.items() if name in _OF_A_MACHINE}
    return known


def facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values in words; nothing of what is empty."""
    return [(name.replace("_", " "), said(value)) for name, value in about.items() if value not in (None, "", [], {})]


def said(value: Any) -> str:
    """One value in words: of a hash its beginning."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {said(inner)}".replace("_", " ") for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(said, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else _HASH.sub(lambda found: f"{found[0][:8]}…", str(value))


def differences(about: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    """Each setting in which two differ, in words; of a setting with parts only the parts that do."""
    for name, (first, second) in about.items():
        if name not in FINDINGS:
            yield from _differences(name, first, second)


def _differences(name: str, first: Any, second: Any) -> Iterator[str]:
    if isinstance(first, Mapping) or isinstance(second, Mapping):
        one, other = (side if isinstance(side, Mapping) else {} for side in (first, second))
        for key in dict.fromkeys([*one, *other]):
            yield from _differences(f"{name} {key}", one.get(key), other.get(key))
    elif first != second and _is_plain(first) and _is_plain(second):
        yield _beside(name, first, second)


def _beside(name: str, first: Any, second: Any) -> str:
    return f"{name.replace('_', ' ')}: {_short(first)} and {_short(second)}"


def _short(value: Any) -> str:
    text = "not given" if value in (None, "", [], {}) else " ".join(said(value).split())
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _is_plain(value: Any) -> bool:
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    return not any(isinstance(one, Mapping | list | tuple) for one in inner)
