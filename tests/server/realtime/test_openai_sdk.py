"""The `openai` package, the real one, as a caller; and every event that we send, held against its types."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent

from personaplex.by_turns import Call
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    AnswerBegan,
    AnswerOver,
    Error,
    Interrupted,
    ToolCall,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import EngineError
from personaplex.server.realtime import wire
from personaplex.server.realtime.formats import Encoder, Format
from personaplex.server.service import Service
from tests.cascade_engines import Engines, silence, speech
from tests.server.conftest import serving, settings
from tests.server.realtime.told import Told, append, message, update

ROOT = Path(__file__).parents[3]
TYPES = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(RealtimeServerEvent)[0])
         if not isinstance(kind.model_fields["type"].annotation, str)}  # fmt: skip
OURS = {
    "session.ready", "session.closed", "session.heartbeat_ack", "session.resumed", "playback.acknowledged",
    "input_audio_buffer.overrun", "response.speak", "response.listen", "response.degenerate",
}  # fmt: skip
"""Events that OpenAI does not have; its package passes them on as they are."""


def pcm16(sound: np.ndarray) -> str:
    return b64encode((sound * 32767).astype("<i2").tobytes()).decode()


def talk(address: str, say: Callable[[AsyncRealtimeConnection], Awaitable[None]], model: str = "gpt-realtime") -> None:
    async def hold() -> None:
        client = AsyncOpenAI(api_key="local-token", websocket_base_url=f"{address}/v1", base_url="http://localhost/v1")
        async with asyncio.timeout(30), client.realtime.connect(model=model) as connection:
            await say(connection)

    asyncio.run(hold())


def test_speech_is_answered_in_speech(address: str, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    sound, texts = bytearray(), []

    async def say(connection: AsyncRealtimeConnection) -> None:
        await connection.session.update(
            session={
                "type": "realtime",
                "instructions": "Be brief.",
                "audio": {
                    "input": {"format": {"type": "audio/pcmu"}, "turn_detection": {"type": "server_vad"}},
                    "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"},
                },
            }
        )
        spoken = np.concatenate([silence(0.4), speech(1.2), silence(1.0)])
        data = Encoder(Format("ulaw", 8_000)).push(spoken, last=True)
        await connection.input_audio_buffer.append(audio=b64encode(data).decode())
        async for event in connection:
            if event.type == "response.output_audio.delta":
                sound.extend(b64decode(event.delta))
            elif event.type == "conversation.item.input_audio_transcription.completed":
                texts.append(event.transcript)
            elif event.type == "response.output_audio_transcript.done":
                texts.append(event.transcript.strip())
            elif event.type == "response.done":
                assert event.response.status == "completed"
                break

    talk(address, say)
    assert texts == ["what time is it", "Good day. It is noon."]
    assert 2 * 24_000 <= len(sound) <= 2.1 * 24_000 and np.abs(np.frombuffer(sound, "<i2")).max() > 2000


def test_text_is_answered_in_text_and_a_tool_is_called(address: str, engines: Engines) -> None:
    engines.thinker.tokens = [Call("call_1", "clock", "{}"), "It is noon."]
    texts: list[str] = []

    async def say(connection: AsyncRealtimeConnection) -> None:
        await connection.session.update(
            session={
                "type": "realtime",
                "output_modalities": ["text"],
                "tools": [{"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}],
            }
        )
        question: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "The time?"}]}
        await connection.conversation.item.create(item=question)
        await connection.response.create()
        async for event in connection:
            if event.type == "response.output_text.delta":
                texts.append(event.delta)
            elif event.type == "response.function_call_arguments.done":
                result: Any = {"type": "function_call_output", "call_id": event.call_id, "output": "12:00"}
                await connection.conversation.item.create(item=result)
            elif event.type == "response.done":
                if texts:
                    break
                await connection.response.create()

    talk(address, say)
    assert "".join(texts).strip() == "It is noon."


# The package opens websockets' connections as these want it no more since their version 17.1.
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
def test_the_one_that_blocks_speaks_with_the_duplex_model(address: str) -> None:
    client = OpenAI(api_key="local-token", websocket_base_url=f"{address}/v1", base_url="http://localhost/v1")
    n_bytes = 0
    with client.realtime.connect(model="personaplex") as connection:
        for _ in range(10):
            connection.input_audio_buffer.append(audio=pcm16(np.full(1920, 0.2, np.float32)))
        for event in connection:
            if event.type == "response.output_audio.delta":
                n_bytes += len(b64decode(event.delta))
                if n_bytes == 2 * 1920 * 10:
                    break
    assert n_bytes == 2 * 1920 * 10


def test_a_token_is_asked_for_and_a_mistake_is_an_error_event(
    scripted_service: Callable[..., Service],
) -> None:
    made = scripted_service(settings=settings(token="local-token"))
    found: list[str] = []

    async def say(connection: AsyncRealtimeConnection) -> None:
        await connection.conversation.item.retrieve(item_id="nothing")
        async for event in connection:
            if event.type == "error":
                found.append(event.error.code or "")
                break

    with serving(made) as http:
        talk(http.replace("http", "ws"), say)
    assert found == ["item_not_found"]


def test_what_we_send_is_what_its_types_say(address: str) -> None:
    """Of all events that a conversation by turns makes; the package itself would take anything."""
    told = Told()
    clock = {"type": "function", "name": "clock", "description": "x", "parameters": {"type": "object"}}
    told.say(update(tools=[clock], audio={"output": {"format": {"type": "audio/pcmu"}}}), append())
    told.happen(UserStarted(1), UserText(2, "a", False), UserStopped(3), UserText(3, "a b", True))
    told.happen(AnswerBegan(4), AgentStarted(4))
    told.frames(2)
    told.happen(AgentText(5, "Hello. "), ToolCall(5, "clock", "{}", "call_1"))
    told.say({"type": "conversation.item.truncate", "item_id": told.items[-2], "audio_end_ms": 80})
    told.happen(Interrupted(6), AgentEnded(6), AnswerOver(6, True))
    told.say(message("hello"), message("be brief", "system"), message("yes", "assistant"))
    result = {"type": "function_call_output", "call_id": "call_1", "output": "x"}
    told.say({"type": "conversation.item.create", "item": result}, {"type": "nonsense", "event_id": "mine"})
    told.say(update(output_modalities=["text"]), {"type": "response.create"})
    told.happen(AnswerBegan(7), AgentStarted(7), AgentText(7, "Hi."), AgentEnded(8), AnswerOver(8, False))
    told.happen(AnswerBegan(9), Error(9, EngineError("no")), AnswerOver(9, False))
    for item in told.items[:2]:
        told.say({"type": "conversation.item.retrieve", "item_id": item})
    told.say({"type": "conversation.item.delete", "item_id": told.items[-1]}, {"type": "input_audio_buffer.clear"})
    told.say({"type": "output_audio_buffer.clear"})
    checked = set()
    for at, event in enumerate(told.events):
        if event["type"] not in OURS:
            TYPES[event["type"]].model_validate({"event_id": f"event_{at}", **event}, strict=True)
            checked.add(event["type"])
    assert len(checked) >= 25, sorted(checked)


def test_what_openai_does_not_have_is_in_the_documentation() -> None:
    told = (ROOT / "docs" / "server.md").read_text()
    of_clients = {"session.start", "session.close", "session.heartbeat", "session.event_ack", "session.resume"}
    assert {name for name in OURS | of_clients | {"playback.ack"} if f"`{name}`" not in told} == set()
    known = {kind for kind in wire._EVENT_TYPES if kind not in of_clients | {"playback.ack"}}
    theirs = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(RealtimeClientEvent)[0])}
    assert known <= theirs, "all others are OpenAI's"
    codes = set(re.findall(r"`(\w+_(?:unsupported|response|required|expired|exhausted))`", told))
    source = "".join(path.read_text() for path in (ROOT / "src/personaplex/server").rglob("*.py"))
    assert len(codes) > 6 and {code for code in codes if f'"{code}"' not in source} == set()
