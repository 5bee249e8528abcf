"""What a conversation by turns can do beside `Conversation`: its history, its tools, and whose turn it is.

A duplex model has none of these. Whoever speaks a protocol of turns (OpenAI's Realtime) asks for `TurnBased`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from personaplex.conversation import Conversation

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


class Call(NamedTuple):
    """A tool that is to be called: `arguments` are JSON as the language model wrote them; `id` goes with the result."""

    id: str
    name: str
    arguments: str


class Message(NamedTuple):
    """One turn of a conversation in text, and the tools it calls; of role "tool" the result of the call `call_id`."""

    role: Role
    content: str
    calls: tuple[Call, ...] = ()
    call_id: str = ""

    def as_chat(self) -> dict[str, Any]:
        """As OpenAI's chat protocol, and the templates of chat models, write it."""
        written: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            written["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        if self.role == "tool":
            written["tool_call_id"] = self.call_id
        return written


class Tool(NamedTuple):
    """A function that the agent may have called; `parameters` is a JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Directions:
    """How answers are made; None is what the persona says. `choice`: auto, none, required, or the name of a tool."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class TurnTaking:
    """Who tells when the user speaks: the `voice`, or a `hand` (`begin_turn`, `end_turn`).

    Not `answers`, what was said waits for `respond`; not `interrupts`, the agent speaks on, and is told afterwards.
    `onset` (probability of speech) and `silence_seconds` change the backend's own.
    """

    by: Literal["voice", "hand"] = "voice"
    answers: bool = True
    interrupts: bool = True
    onset: float | None = None
    silence_seconds: float | None = None


class TurnBased(Conversation, Protocol):
    """A conversation whose agent answers, turn by turn. Each raises `Closed` once it has ended."""

    def add(self, message: Message) -> None:
        """Put a message into what was said, before the next answer; it is not answered by itself."""

    def forget(self, message: Message) -> None:
        """Take the last message with this role and text out of what was said; `Error` is told when there is none."""

    def respond(self, instructions: str | None = None, directions: Directions | None = None) -> None:
        """Have the agent answer what was said so far, once that is understood; these two hold for this answer only."""

    def direct(self, directions: Directions) -> None:
        """How answers are made from the next one on."""

    def truncate(self, text: str) -> None:
        """Of the last answer only `text` was heard: that is what is remembered. Nothing, if another is being made."""

    def take_turns(self, turns: TurnTaking) -> None:
        """How turns are taken from now on."""

    def begin_turn(self) -> None:
        """By hand: what is sent from now on is the user speaking."""

    def end_turn(self) -> None:
        """The user has said what they wanted to; harmless when they are not speaking."""

    def drop_turn(self) -> None:
        """Forget what the user is saying."""
