"""The chat client against a server that does what a server may do, and `ChatSession` with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest

from personaplex.by_turns import Call, Tool
from personaplex.cascade.backend import Cascade
from personaplex.cascade.chat import Chat
from personaplex.cascade.engine import Message
from personaplex.cascade.registry import open_thinker
from personaplex.cascade.session import ChatSession
from personaplex.errors import ConversationError, EngineError, PersonaError, UsageError
from personaplex.persona import Parts
from tests.cascade_engines import Engines

QUESTION = [Message("system", "Be brief."), Message("user", "Hello?")]
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """OpenAI's protocol by hand: `models`, and an `answer` that writes what follows the headers."""

    def __init__(self, answer: Answer, models: tuple[str, ...] = ("tiny:latest",), status: int = 200) -> None:
        self.answer, self.models, self.status = answer, models, status
        self.asked: list[dict[str, Any]] = []
        self.reached, self.left = asyncio.Event(), asyncio.Event()
        self.handling: list[asyncio.Task[None]] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handling.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get /v1/models"):
            body = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
            about = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
            writer.write(f"HTTP/1.1 200 OK\r\n{about}\r\n\r\n{body}".encode())
        else:
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            self.asked.append(json.loads(await reader.readexactly(length)))
            kind = "text/event-stream" if self.status == 200 else "application/json"
            writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode())
            self.reached.set()
            both = [asyncio.ensure_future(self.answer(writer)), asyncio.ensure_future(reader.read())]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            self.left.set()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def event(text: str | None, finish: str | None = None, *, field: str = "content") -> bytes:
    choice = {"index": 0, "delta": {field: text} if text else {}, "finish_reason": finish}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


async def whole(writer: asyncio.StreamWriter) -> None:
    for text in ("Hel", "lo. ", "I am here."):
        writer.write(event(text))
        await writer.drain()
    writer.write(event(None, "stop") + b"data: [DONE]\n\n")
    await writer.drain()


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(event("Hel") + event("lo"))
    await writer.drain()


async def hangs(writer: asyncio.StreamWriter) -> None:
    writer.write(event("Hello. "))
    await writer.drain()
    await asyncio.sleep(60)


async def refuses(writer: asyncio.StreamWriter) -> None:
    writer.write(b'{"error": {"message": "no such model"}}')
    await writer.drain()


async def nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"data: {not json\n\n")
    await writer.drain()


async def thinks(writer: asyncio.StreamWriter) -> None:
    for field in ("reasoning_content", "reasoning"):
        writer.write(event("Who is it? ", field=field))
    for text in ("<thi", "nk>A friend?", "</think>\n", "Hello. "):
        writer.write(event(text))
    writer.write(event("I am here.<", "stop"))
    await writer.drain()


async def only_thinks(writer: asyncio.StreamWriter) -> None:
    writer.write(event("Who is it? ", field="reasoning") + event("<think>Well, ") + event(None, "length"))
    await writer.drain()


async def calls(writer: asyncio.StreamWriter) -> None:
    """Two tools, as servers stream them: who is called first, and then the arguments in parts."""
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "call_a", "function": {"name": "clock", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"zone":'}},
        {"index": 1, "function": {"name": "stop", "arguments": ""}},
        {"index": 0, "function": {"arguments": ' "UTC"}'}},
    ]
    writer.write(event("One moment. "))
    for part in parts:
        choice = {"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": None}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
        writer.write(f"data: {json.dumps(chunk)}\n\n".encode())
    writer.write(event(None, "tool_calls") + b"data: [DONE]\n\n")
    await writer.drain()


@asynccontextmanager
async def serving(answer: Answer, **options: Any) -> AsyncGenerator[Server, None]:
    server = Server(answer, **options)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()
        await asyncio.gather(*server.handling)


async def collect(chat: Chat, **options: Any) -> list[str]:
    try:
        return [token async for token in chat.answer(QUESTION, **options)]
    finally:
        await chat.close()


def test_an_answer_comes_in_pieces_with_the_options_asked_for() -> None:
    async def ask() -> None:
        async with serving(whole) as server:
            chat = open_thinker("chat:tiny", url=server.url)
            assert isinstance(chat, Chat)
            await chat.check()
            tokens = await collect(chat, temperature=0.5, max_tokens=9, seed=3)
            assert tokens == ["Hel", "lo. ", "I am here."]
            (asked,) = server.asked
            assert asked["messages"] == [message.as_chat() for message in QUESTION] and asked["stream"]
            assert (asked["model"], asked["temperature"], asked["max_tokens"], asked["seed"]) == ("tiny", 0.5, 9, 3)

    asyncio.run(ask())


def test_tools_are_offered_and_their_calls_put_together() -> None:
    clock = Tool("clock", "Tells the time.", {"type": "object", "properties": {"zone": {"type": "string"}}})
    before = [
        Message("user", "What time is it?"),
        Message("assistant", "", (Call("call_0", "clock", "{}"),)),
        Message("tool", "noon", call_id="call_0"),
    ]

    async def ask() -> None:
        async with serving(calls) as server:
            chat = Chat("tiny", server.url)
            found = [piece async for piece in chat.consult(before, [clock, Tool("stop")], choice="clock")]
            await chat.close()
            assert found == ["One moment. ", Call("call_a", "clock", '{"zone": "UTC"}'), Call("call_1", "stop", "{}")]
            (asked,) = server.asked
            offered = [tool["function"] for tool in asked["tools"]]
            assert [tool["name"] for tool in offered] == ["clock", "stop"] and offered[0][
                "parameters"
            ] == clock.parameters
            assert asked["tool_choice"] == {"type": "function", "function": {"name": "clock"}}
            called = {"id": "call_0", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
            assert asked["messages"][1:] == [
                {"role": "assistant", "content": "", "tool_calls": [called]},
                {"role": "tool", "content": "noon", "tool_call_id": "call_0"},
            ]

    asyncio.run(ask())


def test_what_a_model_thinks_is_neither_said_nor_remembered() -> None:
    async def ask() -> None:
        async with serving(thinks) as server:
            assert await collect(Chat("tiny", server.url)) == ["Hello. ", "I am here.", "<"]
            chat = Chat("tiny", server.url)
            async with ChatSession(parts=Parts(llm="responder")) as session:
                session._engines._thinkers["responder"] = chat
                async for _ in session.say("Hello?"):
                    pass
                assert session.history[-1].content == "Hello. I am here.<"

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("answer", "status", "patience", "told", "n_before"),
    [
        (cut, 200, 30.0, "in the middle of an answer", 2),
        (hangs, 200, 2.0, "said nothing for 2 s", 1),
        (refuses, 404, 30.0, r"refused \(404\).*no such model", 0),
        (nonsense, 200, 30.0, "broke off", 0),
        (only_thinks, 200, 30.0, "used up its allowed tokens and said nothing", 0),
    ],
)
def test_what_goes_wrong_with_a_server_is_one_line(
    answer: Answer, status: int, patience: float, told: str, n_before: int
) -> None:
    async def ask() -> None:
        async with serving(answer, status=status) as server:
            chat, found = Chat("tiny", server.url, patience_seconds=patience), []
            await chat.check()
            with pytest.raises(EngineError, match=told) as error:
                async for token in chat.answer(QUESTION):
                    found.append(token)
            assert len(found) == n_before and "\n" not in str(error.value)
            await chat.close()

    asyncio.run(ask())


def test_a_server_that_is_down_or_lacks_the_model_is_told_beforehand() -> None:
    async def ask() -> None:
        async with serving(whole, models=("a", "b")) as server:
            chat = Chat("tiny", server.url)
            with pytest.raises(EngineError, match=r"does not have the model 'tiny' \(it has: a, b\)"):
                await chat.check()
            await chat.close()
        for ask_it in (chat.check, lambda: collect(chat)):
            with pytest.raises(EngineError, match="no chat server answers at http://127"):
                await ask_it()
        await chat.close()

    asyncio.run(ask())


def test_what_is_needed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="which model"):
        open_thinker("ollama")
    with pytest.raises(UsageError, match="OPENAI_BASE_URL"):
        open_thinker("chat:x")
    assert open_thinker("ollama:llama3.2:1b").name == "llama3.2:1b"


def test_who_stops_reading_ends_the_request() -> None:
    async def ask() -> None:
        async with serving(hangs) as server:
            chat = Chat("tiny", server.url)
            async with aclosing(chat.answer(QUESTION)) as tokens:
                assert await anext(tokens) == "Hello. "
            await asyncio.wait_for(server.left.wait(), 10)
            await chat.close()

    asyncio.run(ask())


def test_an_interrupted_conversation_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    Engines(monkeypatch)

    async def ask() -> None:
        async with serving(hangs) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            backend = Cascade(parts=Parts("script-ears", "chat:tiny", "script-voice", voice="one"))
            try:
                async with backend.open() as call:
                    call.send_text("hello")
                    await asyncio.wait_for(server.reached.wait(), 30)
                    call.cancel()
                    await asyncio.wait_for(server.left.wait(), 30)
            finally:
                await asyncio.to_thread(backend.close)

    asyncio.run(ask())


def test_a_session_remembers_both_and_changes_who_answers() -> None:
    async def talk() -> None:
        async with serving(whole) as server:
            chat = Chat("tiny", server.url)
            async with ChatSession("aria", parts=Parts(llm="responder")) as session:
                session._engines._thinkers["responder"] = chat
                assert "".join([token async for token in session.say("Hello?")]) == "Hello. I am here."
                said = [Message("user", "Hello?"), Message("assistant", "Hello. I am here.")]
                assert list(session.history) == said
                session.switch_persona("sage")
                async for _ in session.say("And now?"):
                    pass
                assert len(session.history) == 4
                first, second = server.asked
                assert "Aria" in first["messages"][0]["content"] and first["max_tokens"] == 60
                assert "Sage" in second["messages"][0]["content"] and len(second["messages"]) == 4
                with pytest.raises(PersonaError, match="unknown persona 'nobody'; there are aria"):
                    session.switch_persona("nobody")
                session.reset()
                assert not session.history

    asyncio.run(talk())


def test_a_session_speaks_while_it_reads_and_remembers_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(monkeypatch)
    engines.thinker.tokens = ["One two. ", "**Three** 😀 four. ", "😀. ", "five"]

    async def talk() -> None:
        parts = Parts("script-ears", "script-mind", "script-voice", voice="two")
        async with ChatSession(parts=parts) as session:
            spoken = session.speak(session.say("count"))
            piece = await anext(spoken)
            assert piece.words[0].text == "One"
            assert [piece.words[0].text async for piece in spoken] == ["two.", "Three", "four.", "five"]
            assert {voice for _, voice in engines.synthesiser.said} == {"two"}
            assert [piece.words[0].text async for piece in session.speak("Just this.")] == ["Just", "this."]
            engines.thinker.tokens = ["One two. ", "Three", 60.0]
            async with aclosing(session.speak(session.say("slowly"))) as spoken:
                assert (await anext(spoken)).words[0].text == "One" and engines.thinker.n_open == 1
            assert engines.thinker.n_open == 0 and session.history[-1] == Message("assistant", "One two. Three")
            session.rewind(2)
            async with aclosing(session.say("again")) as tokens:
                await anext(tokens)
                with pytest.raises(ConversationError, match="still coming"):
                    await anext(session.say("too early"))
            assert session.history[-1] == Message("assistant", "One two. ") and engines.thinker.n_open == 0
            engines.thinker.tokens = [EngineError("down")]
            with pytest.raises(EngineError, match="down"):
                await anext(session.say("lost"))
            assert len(session.history) == 4, "what nobody answered is not remembered"

    asyncio.run(talk())
