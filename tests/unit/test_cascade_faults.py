"""Conversations whose language model's server does what a server may do: each time a line, and the talk goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from personaplex.cascade import chat
from personaplex.cascade.backend import Cascade
from personaplex.cascade.conversation import Manner
from personaplex.conversation import Ended, Error, Settings
from personaplex.errors import EngineError
from personaplex.persona import Parts
from tests.cascade_engines import Engines, LevelDetector, silence, speech
from tests.unit.test_cascade_chat import (
    Answer,
    Server,
    cut,
    hangs,
    nonsense,
    only_thinks,
    refuses,
    serving,
    thinks,
    whole,
)  # fmt: skip
from tests.unit.test_cascade_conversation import hold, of, text
from tests.unit.test_cascade_delegated import listen


@contextmanager
def served() -> Iterator[Server]:
    """A server in an event loop of its own."""
    loop, started, servers = asyncio.new_event_loop(), threading.Event(), []
    ended = asyncio.Event()

    async def serve() -> None:
        async with serving(whole) as server:
            servers.append(server)
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(30)
    try:
        yield servers[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with served() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setattr(chat, "CHAT", dataclasses.replace(chat.CHAT, make=partial(chat.Chat, patience_seconds=2.0)))
        yield server


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


PARTS = Parts("script-ears", "chat:tiny", "script-voice")
PATIENT = Manner(detector=LevelDetector, patient=True)


@pytest.mark.parametrize(
    ("answer", "status", "told", "said"),
    [
        (cut, 200, "in the middle of an answer", "Hello"),
        (hangs, 200, "said nothing for 2 s", "Hello."),
        (refuses, 404, "refused (404)", ""),
        (refuses, 500, "refused (500)", ""),
        (nonsense, 200, "broke off", ""),
        (only_thinks, 200, "used up its 120 tokens and said nothing", ""),
        (thinks, 200, None, "Hello. I am here.<"),
    ],
)
def test_the_talk_goes_on(
    answer: Answer, status: int, told: str | None, said: str, server: Server, engines: Engines
) -> None:
    engines.recogniser.said = ["hello", "are you there"]
    with Cascade(1, parts=PARTS, manner=PATIENT) as cascade, cascade.open(Settings(seed=3)) as call:
        events = call.events()
        server.answer, server.status = answer, status
        first = listen(call, events, speech(0.5), silence(4))
        server.answer, server.status = whole, 200
        second = listen(call, events, speech(0.5), silence(4))
    lines = [str(event.error) for event in of(Error, first)]
    assert len(lines) == (told is not None) and all(told is not None and told in line for line in lines)
    assert all("\n" not in line for line in lines) and text(first) == said
    assert text(second) == "Hello. I am here." and not of(Error, second)
    remembered = [message["content"] for message in server.asked[-1]["messages"][1:]]
    assert remembered[-1] == "are you there" and len(remembered) == (3 if said else 1)


def test_a_server_that_goes_down_is_told_each_time(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engines.recogniser.said = ["hello", "hello again"]
    with Cascade(1, parts=PARTS, manner=PATIENT) as cascade:
        with served() as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            call = cascade.open(Settings(seed=3)).__enter__()
        events = call.events()
        found = listen(call, events, *[speech(0.5), silence(2)] * 2)
        assert [str(event.error).split(";")[0] for event in of(Error, found)] == [
            f"no chat server answers at {server.url}"
        ] * 2  # fmt: skip
        call.finish()
        assert isinstance(list(events)[-1], Ended)


def test_a_server_without_the_model_is_told_before_the_talk(server: Server, engines: Engines) -> None:
    engines.recogniser.said = ["hello"]
    told = r"does not have the model 'other' \(it has: tiny:latest\)"
    parts = dataclasses.replace(PARTS, llm="chat:other")
    with Cascade(1, parts=parts, manner=PATIENT) as cascade, pytest.raises(EngineError, match=told):
        cascade.open().__enter__()
    with Cascade(1, parts=PARTS, manner=PATIENT) as cascade:
        assert text(hold(cascade, speech(0.5), silence(4))) == "Hello. I am here."
