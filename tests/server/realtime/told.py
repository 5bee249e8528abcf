"""A machine with what it says taken down, and the rules that clients rely on."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personaplex.conversation import Audio, Capabilities, Event, Settings
from personaplex.errors import PersonaError
from personaplex.server.realtime.by_turns import TurnsMachine
from personaplex.server.realtime.configuration import Configuration
from personaplex.server.realtime.dialect import Dialect
from personaplex.server.realtime.duplex import DuplexMachine
from personaplex.server.realtime.machine import About, Action, Do, Hear, Machine, Start, Tell
from personaplex.units import FRAME_SAMPLES

BY_TURNS = Capabilities(text_input=True, cancel=True, update=True, keep_history=True, user_text=True, tools=True)
DUPLEX = Capabilities(full_duplex=True, text_input=True, cancel=True, update=True, keep_history=True)
FRAME = np.full(FRAME_SAMPLES, 0.1, np.float32)


def choose(now: Configuration) -> Settings:
    """As a service would: some names are known."""
    if now.voice not in (None, "one", "two"):
        raise PersonaError(f"unknown voice {now.voice!r}; there are one and two")
    return Settings(now.voice, now.instructions, now.seed, dict(now.sampling) or None)


class Told:
    """A machine; `actions` is all that it wanted done so far."""

    def __init__(self, able: Capabilities = BY_TURNS, dialect: Dialect = "ga") -> None:
        kind: type[Machine] = DuplexMachine if able.full_duplex else TurnsMachine
        self.machine = kind(About("x", "model", "token", 30.0, able, choose), dialect)
        self.actions: list[Action] = self.machine.take()
        self.frame = 0

    def say(self, *messages: Mapping[str, Any] | str) -> list[Action]:
        """Messages of the client; what follows from them."""
        new: list[Action] = []
        for message in messages:
            self.machine.client(message if isinstance(message, str) else json.dumps(message))
            new += self.machine.take()
        self.actions += new
        return new

    def happen(self, *events: Event) -> list[Action]:
        """Events of the conversation; what follows from them."""
        new: list[Action] = []
        for event in events:
            self.machine.happened(event)
            new += self.machine.take()
        self.actions += new
        return new

    def frames(self, n: int) -> list[Action]:
        """So many frames of the agent."""
        self.frame += n
        return self.happen(*(Audio(self.frame - n + at, FRAME) for at in range(n)))

    @property
    def items(self) -> list[str]:
        """The ids of all items so far."""
        return [event["item"]["id"] for event in self.events if event["type"] == "conversation.item.added"]

    @property
    def events(self) -> list[dict[str, Any]]:
        return events(self.actions)


def events(actions: Sequence[Action]) -> list[dict[str, Any]]:
    return [action.event for action in actions if isinstance(action, Tell)]


def kinds(actions: Sequence[Action]) -> list[str]:
    return [event["type"] for event in events(actions)]


def one(actions: Sequence[Action], kind: str) -> dict[str, Any]:
    (found,) = [event for event in events(actions) if event["type"] == kind]
    return found


def error(actions: Sequence[Action]) -> dict[str, Any]:
    told: dict[str, Any] = one(actions, "error")["error"]
    return told


def done(actions: Sequence[Action]) -> list[tuple[str, dict[str, Any]]]:
    """What the conversation was asked to do."""
    return [(action.what, dict(action.arguments)) for action in actions if isinstance(action, Do)]


def starts(actions: Sequence[Action]) -> list[Settings]:
    return [action.settings for action in actions if isinstance(action, Start)]


def heard(actions: Sequence[Action]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(a.pcm for a in actions if isinstance(a, Hear))])


def append(n_samples: int = FRAME_SAMPLES) -> dict[str, Any]:
    pcm = np.full(n_samples, 8192, "<i2").tobytes()
    return {"type": "input_audio_buffer.append", "audio": b64encode(pcm).decode()}


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **session}}


def message(text: str, role: str = "user", **more: Any) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    item = {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **more}
    return {"type": "conversation.item.create", "item": item}


def check(told: Sequence[dict[str, Any]]) -> None:
    """What clients rely on: whatever is begun is ended once, in order, and nothing is said of what is not open.

    Raises AssertionError.
    """
    response: str | None = None
    items: dict[str, tuple[str, int]] = {}  # open ones: type, output_index
    known: set[str] = set()
    part = sound = False
    n_output = 0
    for event in told:
        json.dumps(event, allow_nan=False)
        kind = event["type"]
        if kind == "response.created":
            assert response is None, "one response at a time"
            response, n_output = event["response"]["id"], 0
            assert event["response"]["status"] == "in_progress" and not event["response"]["output"]
        elif kind == "response.done":
            assert response == event["response"]["id"] and not items and not part
            assert event["response"]["status"] != "in_progress"
            assert all(item["status"] != "in_progress" for item in event["response"]["output"])
            response = None
        elif kind.startswith("response."):
            assert response is not None and event["response_id"] == response, kind
            if kind == "response.output_item.added":
                assert event["output_index"] == n_output and event["item"]["id"] not in known
                items[event["item"]["id"]] = (event["item"]["type"], n_output)
                known.add(event["item"]["id"])
                n_output += 1
            elif kind == "response.output_item.done":
                assert items.pop(event["item"]["id"])[1] == event["output_index"]
                assert event["item"]["status"] != "in_progress"
            elif kind == "response.content_part.added":
                assert not part and items[event["item_id"]][0] == "message"
                part, sound = True, False
            elif kind == "response.content_part.done":
                assert part
                part = False
            elif kind.startswith(("response.output_audio", "response.output_text")):
                assert part and items[event["item_id"]] == ("message", event["output_index"])
                sound |= kind == "response.output_audio.done"
                assert not (sound and kind == "response.output_audio.delta")
            elif kind.startswith("response.function_call_arguments"):
                assert items[event["item_id"]][0] == "function_call"
    if told and told[-1]["type"] == "session.closed":
        assert response is None and not items
