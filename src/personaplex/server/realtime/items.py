"""The items of a conversation, in order: what was said by both, and what was called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from personaplex.by_turns import Call, Message
from personaplex.server.realtime.wire import ItemObject, Refused

MOST_ITEMS = 1000
"""Of a long conversation the newest are kept; a language model is not told more either."""

MOST_TEXT = 20_000
"""Characters of one item of the agent: a duplex model's one response may last for hours."""

MOST_WORDS = 4_000

MOST_WRITTEN = 4_000_000
"""Characters of a client in one conversation: more than a language model reads, and little of a server's memory."""

_TEXTS = {"user": {"input_text"}, "system": {"input_text"}, "assistant": {"output_text", "text"}}

ItemType = Literal["message", "function_call", "function_call_output"]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass
class Item:
    """One of them; `before` is the id of the one before it.

    `n_written` are the characters that a client wrote; `words` are what the agent said, each with the milliseconds of
    its item at which it was over.
    """

    id: str
    type: ItemType
    role: str = ""
    status: Status = "completed"
    content: list[dict[str, Any]] = field(default_factory=list)
    call: Call | None = None
    output: str = ""
    before: str | None = None
    audio_ms: int = 0
    words: list[tuple[int, str]] = field(default_factory=list)
    n_written: int = 0

    @property
    def text(self) -> str:
        """What it says."""
        return " ".join(filter(None, (part.get("transcript") or part.get("text") for part in self.content)))

    @property
    def shown(self) -> dict[str, Any]:
        """The item as clients are told it."""
        about: dict[str, Any] = {"id": self.id, "object": "realtime.item", "type": self.type, "status": self.status}
        if self.type == "message":
            return about | {"role": self.role, "content": [dict(part) for part in self.content]}
        assert self.call is not None
        if self.type == "function_call_output":
            return about | {"call_id": self.call.id, "output": self.output}
        return about | {"call_id": self.call.id, "name": self.call.name, "arguments": self.call.arguments}

    @property
    def message(self) -> Message:
        """The item as a language model is told it."""
        if self.type == "message":
            return Message("system" if self.role == "system" else self.role, self.text)  # type: ignore[arg-type]
        assert self.call is not None
        if self.type == "function_call":
            return Message("assistant", "", (self.call,))
        return Message("tool", self.output, call_id=self.call.id)

    def say(self, text: str) -> None:
        """The agent has said more."""
        self.words.append((self.audio_ms, text))
        del self.words[:-MOST_WORDS]
        part = self.content[0]
        name = "text" if "text" in part else "transcript"
        part[name] = (part[name] + text)[-MOST_TEXT:]

    def cut(self, audio_end_ms: int) -> str:
        """Only so much of it was heard; what is left of its text."""
        self.words = [(at, text) for at, text in self.words if at <= audio_end_ms]
        self.audio_ms = min(self.audio_ms, audio_end_ms)
        heard = "".join(text for _, text in self.words).strip()
        for part in self.content:
            part["text" if "text" in part else "transcript"] = heard
        return heard


class Items:
    """All of them."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._n_written = 0

    def __contains__(self, name: str) -> bool:
        return name in self._items

    @property
    def last(self) -> str | None:
        """The id of the newest."""
        return next(reversed(self._items), None)

    def find(self, name: str) -> Item:
        """An item by its id. Raises Refused."""
        if name not in self._items:
            raise Refused("item_not_found", f"there is no item {name[:80]!r} in this conversation", param="item_id")
        return self._items[name]

    def call(self, call_id: str) -> Call:
        """The call that a result belongs to. Raises Refused."""
        for item in self._items.values():
            if item.type == "function_call" and item.call is not None and item.call.id == call_id:
                return item.call
        raise Refused("invalid_tool_call_id", f"no tool was called as {call_id[:80]!r}", param="item.call_id")

    def check(self, item: Item) -> None:
        """Raise Refused where a client has written too much for one more."""
        if self._n_written + item.n_written > MOST_WRITTEN:
            why = f"at most {MOST_WRITTEN} characters can be written into a conversation; delete some, or begin another"
            raise Refused("conversation_too_long", why, param="item")

    def add(self, item: Item) -> None:
        """Put it at the end."""
        self._n_written += item.n_written
        item.before = self.last
        self._items[item.id] = item
        if len(self._items) > MOST_ITEMS:
            del self._items[next(iter(self._items))]

    def remove(self, name: str) -> Item:
        """Take one out. Raises Refused."""
        item = self.find(name)
        del self._items[name]
        self._n_written -= item.n_written
        return item


def made_by_client(asked: ItemObject, name: str, items: Items) -> Item:
    """An item of a client. Raises Refused for one that says nothing, what nobody here can read, or too much."""
    item = _made(asked, name, items)
    item.n_written = len(item.text) + len(item.output) + (0 if item.type == "message" else len(asked.arguments or ""))
    items.check(item)
    return item


def _made(asked: ItemObject, name: str, items: Items) -> Item:
    if asked.type == "function_call_output":
        if asked.call_id is None or asked.output is None:
            raise Refused("missing_required_parameter", "a result has a call_id and an output", param="item")
        return Item(name, "function_call_output", call=items.call(asked.call_id), output=asked.output)
    if asked.type == "function_call":
        if asked.name is None or asked.arguments is None:
            raise Refused("missing_required_parameter", "a call has a name and arguments", param="item")
        return Item(name, "function_call", call=Call(asked.call_id or name, asked.name, asked.arguments))
    if asked.role is None or not asked.content:
        raise Refused("missing_required_parameter", "a message has a role and content", param="item")
    content: list[dict[str, Any]] = []
    for at, part in enumerate(asked.content):
        if part.type in _TEXTS[asked.role] and part.text is not None:
            content.append({"type": "output_text" if asked.role == "assistant" else "input_text", "text": part.text})
        elif asked.role == "assistant" and part.type in ("output_audio", "audio") and part.transcript is not None:
            content.append({"type": "output_audio", "transcript": part.transcript})
        elif asked.role == "user" and part.type == "input_audio" and part.transcript is not None:
            content.append({"type": "input_audio", "transcript": part.transcript})
        else:
            raise Refused(
                "invalid_value",
                f"content of type {part.type} cannot be taken for a message of role {asked.role}: text can, and what "
                "was said with its transcript; sound goes into the input_audio_buffer",
                param=f"item.content.{at}",
            )
    if not any(part.get("text") or part.get("transcript") for part in content):
        raise Refused("invalid_value", "the message is empty", param="item.content")
    return Item(name, "message", asked.role, content=content)
