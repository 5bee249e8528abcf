"""The chat client, a session and the cascade against a real server: `mlx_lm.server`, with models of some 300 kB."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from personaplex.cascade.backend import Cascade
from personaplex.cascade.chat import Chat
from personaplex.cascade.conversation import Manner
from personaplex.cascade.engine import Message
from personaplex.cascade.registry import open_thinker
from personaplex.cascade.session import ChatSession
from personaplex.conversation import AgentText, Error, Event, Settings
from personaplex.errors import EngineError
from personaplex.persona import Parts
from tests.cascade_engines import LevelDetector, silence
from tests.tiny_llm import write_llm

QUESTION = [Message("system", "Be brief."), Message("user", "what time is it")]


@contextmanager
def serving(model: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server of `model` and its address, ended with whoever asked for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    hub = log.parent / "hub"
    hub.mkdir()  # without a cache the server tells no models
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)],
            stdout=out, stderr=out, env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)},
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            try:
                with urllib.request.urlopen(f"{url}/models", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield server, url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with serving(write_llm(folder / "llm", "<think> one two </think> Good day. It is noon."), folder / "log") as (
        _,
        url,
    ):
        yield url


def model_of(url: str) -> str:
    """The model's name is its folder, which the server tells."""

    async def ask() -> str:
        with pytest.raises(EngineError) as error:
            await Chat("nothing", url).check()
        return str(error.value).split("(it has: ")[1].split(")")[0]

    return asyncio.run(ask())


def test_an_answer_is_streamed_without_what_the_model_thinks(url: str) -> None:
    async def ask() -> None:
        chat = open_thinker(f"chat:{model_of_url}", url=url)
        await chat.check()
        options = {"temperature": 0.0, "max_tokens": 40, "seed": 3}
        tokens = [token async for token in chat.answer(QUESTION, **options)]  # type: ignore[arg-type]
        assert "".join(tokens).strip() == "Good day. It is noon." and len(tokens) > 3
        with pytest.raises(EngineError, match=r"used up its 2 tokens and said nothing; if it reasons"):
            assert not [token async for token in chat.answer(QUESTION, max_tokens=2)]
        await chat.close()

    model_of_url = model_of(url)
    asyncio.run(ask())


def test_a_session_remembers_what_the_model_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)

    async def talk() -> None:
        async with ChatSession("aria", parts=Parts(llm=f"chat:{model}")) as session:
            for _ in range(2):
                async for _ in session.say("what time is it"):
                    pass
            assert [message.content.strip() for message in session.history] == [
                "what time is it", "Good day. It is noon.",
            ] * 2  # fmt: skip

    model = model_of(url)
    asyncio.run(talk())


def test_another_model_than_the_servers_is_told(url: str) -> None:
    async def ask() -> None:
        chat = Chat("nobody/no-such-model", url)
        with pytest.raises(EngineError, match=r"does not have the model 'nobody/no-such-model' \(it has: /"):
            await chat.check()
        with pytest.raises(EngineError, match="refused") as error:
            await anext(chat.answer(QUESTION))
        assert "\n" not in str(error.value)
        await chat.close()

    asyncio.run(ask())


def test_a_server_that_is_killed_in_mid_stream_is_told_and_the_talk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "one two three four five six seven eight nine ten."

    def until(kind: type[Event], told: str = "") -> Event:
        """The first event of a kind whose error says `told`; a microphone is silent meanwhile."""
        last = time.monotonic() + 60
        while time.monotonic() < last:
            event = stream.get(0.1)
            if event is None:
                call.send(silence(0.16))
            elif isinstance(event, kind) and (not isinstance(event, Error) or told in str(event.error)):
                return event
        raise AssertionError(f"no {kind.__name__} {told}")

    with serving(write_llm(tmp_path / "llm", words, again=True), tmp_path / "log") as (server, url):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        parts = Parts(llm=f"chat:{model_of(url)}", max_tokens=1_000_000)
        manner = Manner(detector=LevelDetector)
        with Cascade(1, parts=parts, manner=manner) as cascade, cascade.open(Settings(seed=1)) as call:
            stream = call.events()
            call.send_text("count")
            until(AgentText)
            server.kill()
            error = until(Error)
            assert isinstance(error, Error) and "\n" not in str(error.error)
            assert "broke off" in str(error.error) or "in the middle of an answer" in str(error.error)
            call.cancel()
            call.send_text("are you there")
            until(Error, f"no chat server answers at {url}")
            call.finish()
            assert list(stream)[-1].reason == "finished"  # type: ignore[attr-defined]
