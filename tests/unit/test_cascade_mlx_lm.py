"""Language models in process: the real `mlx-lm`, on models of some 300 kB."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from personaplex.cascade.engine import Message
from personaplex.cascade.mlx_lm import MLXLanguageModel
from personaplex.cascade.registry import open_thinker
from personaplex.cascade.session import ChatSession
from personaplex.errors import EngineError, UsageError
from personaplex.persona import Parts
from tests.tiny_llm import TEMPLATE, write_llm

QUESTION = [Message("system", "Be brief."), Message("user", "what time is it")]


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm") / "random")


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm") / "reciting", "one two three. Good day.")


def with_model(folder: Path, use: Callable[[MLXLanguageModel], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        model = open_thinker("mlx-lm:" + str(folder), **options)
        assert isinstance(model, MLXLanguageModel)
        try:
            await use(model)
        finally:
            await model.close()

    asyncio.run(run())


async def said(model: MLXLanguageModel, messages: list[Message] = QUESTION, **options: Any) -> str:
    return "".join([token async for token in model.answer(messages, **options)])


def test_an_answer_comes_token_by_token_and_ends(reciting: Path) -> None:
    async def use(model: MLXLanguageModel) -> None:
        await model.check()
        assert [token async for token in model.answer(QUESTION)] == ["one", " two", " three.", " Good", " day."]
        assert await said(model, max_tokens=2) == "one two"

    with_model(reciting, use)


def test_the_same_seed_says_the_same_beside_neighbours_too(random: Path) -> None:
    async def use(model: MLXLanguageModel) -> None:
        drawn = [await said(model, temperature=1.0, seed=seed, max_tokens=12) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        both = await asyncio.gather(*(said(model, temperature=1.0, seed=seed, max_tokens=12) for seed in (1, 2)))
        assert both == drawn[1:]
        assert await said(model, max_tokens=12) == await said(model, seed=5, max_tokens=12), "the likeliest"
        assert await said(model, temperature=1.0, max_tokens=12) != await said(model, temperature=1.0, max_tokens=12)

    with_model(random, use)


def test_who_stops_reading_ends_the_work_at_the_next_token(random: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, may_go_on, begun, real = [], threading.Event(), threading.Event(), llama.Model.__call__

    def counted(self: Any, tokens: mx.array, *rest: Any, **more: Any) -> mx.array:
        calls.append(tokens.shape[1])
        begun.set()
        assert may_go_on.wait(30)
        result: mx.array = real(self, tokens, *rest, **more)
        return result

    async def use(model: MLXLanguageModel) -> None:
        await model.check()
        monkeypatch.setattr(llama.Model, "__call__", counted)
        may_go_on.set()
        async with aclosing(model.answer(QUESTION, max_tokens=500)) as tokens:
            await anext(tokens)
        await model._worker.run(lambda: None)
        assert len(calls) <= 5, "the prompt, the token and the next, which is begun with it"
        calls.clear()
        may_go_on.clear()
        begun.clear()
        long = [Message("user", "word " * 1500)]
        reading = asyncio.create_task(said(model, long))
        await asyncio.to_thread(begun.wait, 30)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        may_go_on.set()
        await model._worker.run(lambda: None)
        assert calls == [256], "the prompt is not read to its end"
        calls.clear()
        assert await said(model, max_tokens=3), "and the next answer comes"

    with_model(random, use)


def test_the_oldest_turns_are_left_out(random: Path) -> None:
    async def use(model: MLXLanguageModel) -> None:
        await model.check()
        assert model._loaded is not None
        tokenizer = model._loaded[1]
        turns = [
            Message("user", f"q{i} " + "word " * 20) if i % 2 == 0 else Message("assistant", "yes") for i in range(41)
        ]
        messages = [Message("system", "Be brief."), *turns]
        for most in (60, 200, 400):
            text, tokens = model._prompt(tokenizer, messages, most)
            assert len(tokens) <= most < len(tokens) + 2 * 30 and text.startswith("<system> Be brief. <end> <user> q")
            assert text.count("q40") == 1 and text.endswith("<assistant>")
        assert model._prompt(tokenizer, messages, 9999)[0].count("<user>") == 21
        assert await said(model, messages, max_tokens=5)
        with pytest.raises(EngineError, match="too long"):
            await said(model, [Message("user", "word " * 300)])

    with_model(random, use, context_tokens=200)


@pytest.mark.parametrize("begins", ["<assistant>", "<assistant> <think>"])
def test_what_a_model_thinks_is_not_said_and_not_counted(begins: str, tmp_path: Path) -> None:
    template, heard = TEMPLATE.replace("<assistant>", begins), "It is noon."
    folder = write_llm(tmp_path / "llm", "<think> one two </think> It is noon.", template=template)

    async def use(model: MLXLanguageModel) -> None:
        assert await said(model) == heard
        assert await said(model, max_tokens=3) == heard
        async with ChatSession(parts=Parts(llm=f"mlx-lm:{folder}", max_tokens=3)) as session:
            assert "".join([token async for token in session.say("what time is it")]) == heard
            assert [message.content for message in session.history] == ["what time is it", heard]

    with_model(folder, use)


def test_a_model_that_only_thinks_is_told_of(tmp_path: Path) -> None:
    folder = write_llm(tmp_path / "llm", "<think> one two three", context=60, again=True)

    async def use(model: MLXLanguageModel) -> None:
        with pytest.raises(EngineError, match="until 60 tokens were full, and said nothing"):
            await said(model, max_tokens=9)

    with_model(folder, use)


def damaged(folder: Path, what: str) -> Path:
    write_llm(folder, template=None if what == "template" else "{{ nothing.at.all }}" if what == "broken" else "x")
    if what == "weights":
        (folder / "model.safetensors").write_bytes(b"no safetensors")
    if what == "config":
        (folder / "config.json").write_text('{"model_type": "nobody knows"}')
    if what == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    if what == "empty":
        for path in folder.iterdir():
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("template", "no chat template"), ("broken", "failed: 'nothing' is undefined"), ("weights", "cannot be loaded"),
        ("config", "cannot be loaded.*nobody knows"), ("tokenizer", "cannot be loaded"), ("empty", "cannot be loaded"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_model_is_one_line(what: str, told: str, tmp_path: Path) -> None:
    folder = damaged(tmp_path / "llm", what)

    async def use(model: MLXLanguageModel) -> None:
        with pytest.raises(EngineError, match=told) as error:
            await model.check()
            await said(model)
        assert "\n" not in str(error.value)

    with_model(folder, use)


def test_a_model_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    async def use(model: MLXLanguageModel) -> None:
        with pytest.raises(EngineError, match=r"no folder .*nor is that|cannot be loaded") as error:
            await model.check()
        assert "\n" not in str(error.value) and model.name in str(error.value)

    with_model(Path("/no/such/folder"), use)
    with_model(Path("nobody/no-such-model"), use)
    with pytest.raises(UsageError, match="which model"):
        open_thinker("mlx-lm")


def test_a_closed_model_leaves_no_thread(reciting: Path) -> None:
    with_model(reciting, lambda model: model.check())
    for thread in threading.enumerate():
        if thread.name.startswith("personaplex-mlx-lm"):
            thread.join(10)
            assert not thread.is_alive()
