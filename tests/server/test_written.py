"""What docs/server.md says of names, codes and numbers is what the code has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from personaplex.errors import AudioError, Busy, EngineError, PersonaError, PersonaPlexError, Unavailable, UsageError
from personaplex.server.moshi import call, ear, opus
from personaplex.server.moshi.query import SAMPLING
from personaplex.server.moshi.wire import Kind
from personaplex.server.refusals import TooLarge, refusal
from personaplex.server.service import Service
from personaplex.server.settings import DEFAULT_PORT, ServerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()


def test_every_metric_that_is_named_is_there(scripted_service: Callable[..., Service]) -> None:
    page = scripted_service().metrics.page().decode()
    there = set(re.findall(r"^# TYPE (personaplex_\w+) (?:gauge|counter|histogram)", page, re.MULTILINE))
    named = set(re.findall(r"`(personaplex_\w+)`", PAGE))
    assert named == {name for name in there if not name.endswith("_created")} - {"personaplex_ready"}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("all slots are taken", Busy(1, 1)),
        ("loading, about to stop, no such mode", Unavailable("")),
        ("an unknown voice or persona, a value out of range", PersonaError("")),
        ("an unknown voice or persona, a value out of range", UsageError("")),
        ("sound that cannot be read", AudioError("")),
        ("a message that is too long", TooLarge("")),
        ("a language model or voice of the cascade that fails", EngineError("")),
        ("our mistake; the log has more", PersonaPlexError("")),
    ],
)
def test_the_codes_are_those_in_the_table(line: str, error: PersonaPlexError) -> None:
    found = re.search(rf"^\| {line} \| (\d+)[^|]*\| (\d+) \|$", PAGE, re.MULTILINE)
    assert found is not None
    assert (refusal(error).status, refusal(error).close_code) == (int(found[1]), int(found[2]))


def test_the_numbers_of_the_protocol_are_the_codes() -> None:
    defaults = ServerSettings()
    text = " ".join(PAGE.split())
    for sentence in (
        f"http://127.0.0.1:{DEFAULT_PORT}",
        f"`--drain-seconds` ({defaults.drain_seconds:g})",
        f"at most {call.MOST_TEXT} characters",
        f"more than {ear.LATE_SECONDS:g} s of it wait",
        f"messages of over {call.MOST_MESSAGE_BYTES >> 10} KiB or with over {opus.MOST_SECONDS:g} s of sound",
        f"nothing comes for {defaults.idle_seconds / 60:g} minutes",
        f"take what it is sent for {defaults.unsent_seconds:g} s, or does not answer pings for "
        f"{defaults.silent_seconds:g} s",
    ):
        assert sentence in text, sentence
    assert (ear.MOST_WAITING_SECONDS, ear.KEPT_SECONDS) == (60, 0.5), "a minute, half a second"
    for name in SAMPLING:
        assert f"`{name}`" in text
    for kind in Kind:
        assert re.search(rf"\b{int(kind)} {kind.name.lower()}\b", text), kind
