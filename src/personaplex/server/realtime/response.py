"""One response as clients are told it, from `response.created` to `response.done`, in the order they rely on."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from personaplex.by_turns import Call
from personaplex.server.realtime.configuration import DEFAULT_VOICE, Configuration, Modality
from personaplex.server.realtime.formats import Encoder
from personaplex.server.realtime.items import Item, Items
from personaplex.units import SAMPLE_RATE

Tell = Callable[[dict[str, Any]], None]
ResponseStatus = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]

MOST_OUTPUT = 64
"""Items of one response that `response.done` repeats."""


class Response:
    """A response; `tell` takes each event. `calls` are the tools that it called."""

    def __init__(
        self,
        name: str,
        now: Configuration,
        items: Items,
        tell: Tell,
        new_id: Callable[[str], str],
        *,
        modality: Modality | None = None,
        metadata: Mapping[str, str] | None = None,
        epoch: int = 0,
    ) -> None:
        self.id = name
        self.message: Item | None = None
        self.calls: list[Call] = []
        self.said = False
        self._now = now
        self._items, self._tell, self._new_id = items, tell, new_id
        self._modality = modality or now.modality
        self._metadata = metadata
        self._epoch = epoch
        self._output: list[Item] = []
        self._n_output = 0
        self._index = 0
        self._encoder = Encoder(now.output)
        self._status: ResponseStatus = "in_progress"
        self._details: dict[str, Any] | None = None
        tell({"type": "response.created", "response": self.shown})

    @property
    def shown(self) -> dict[str, Any]:
        """The response as clients are told it."""
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self._status,
            "status_details": self._details,
            "output": [item.shown for item in self._output],
            "output_modalities": [self._modality],
            "audio": {"output": {"format": self._encoder.form.ga, "voice": self._now.voice or DEFAULT_VOICE}},
            "conversation_id": "conv_default",
            "max_output_tokens": self._now.directions.max_tokens or "inf",
            "metadata": None if self._metadata is None else dict(self._metadata),
            "usage": None,
            "epoch": self._epoch,
        }

    def begin(self) -> None:
        """The agent begins to speak."""
        part = {"type": "output_text", "text": ""}
        if self._modality == "audio":
            part = {"type": "output_audio", "transcript": ""}
        self.message = Item(self._new_id("item"), "message", "assistant", "in_progress")
        self._index = self._add(self.message)
        self.message.content.append(part)
        self._tell({"type": "response.content_part.added", **self._where, "part": self._part})

    def hear(self, pcm: np.ndarray, now: Configuration) -> None:
        """80 ms of it, [S]; in the format of `now`."""
        assert self.message is not None
        self.message.audio_ms += round(1000 * len(pcm) / SAMPLE_RATE)
        if self._modality == "text":
            return
        if self._encoder.form != now.output:
            self._tell_audio(self._encoder.push(np.zeros(0, np.float32), last=True))
            self._encoder = Encoder(now.output)
        self._tell_audio(self._encoder.push(pcm))

    def say(self, text: str) -> None:
        """Text that the agent's speech completed."""
        assert self.message is not None
        self.said = True
        self.message.say(text)
        kind = "output_text" if self._modality == "text" else "output_audio_transcript"
        self._tell({"type": f"response.{kind}.delta", **self._where, "delta": text})

    def end(self, *, whole: bool) -> None:
        """The agent has ended; not `whole`, it was cut short. Harmless when nothing was begun."""
        message = self.message
        if message is None:
            return
        message.status = "completed" if whole else "incomplete"
        if self._modality == "audio":
            self._tell_audio(self._encoder.push(np.zeros(0, np.float32), last=True))
            self._encoder = Encoder(self._encoder.form)
            self._tell({"type": "response.output_audio.done", **self._where})
            done = {"type": "response.output_audio_transcript.done", "transcript": message.text}
        else:
            done = {"type": "response.output_text.done", "text": message.text}
        self._tell({**done, **self._where})
        self._tell({"type": "response.content_part.done", **self._where, "part": self._part})
        self._finish(message, self._index)
        self.message = None

    def call(self, call: Call) -> None:
        """A tool that is to be called."""
        self.calls.append(call)
        item = Item(self._new_id("item"), "function_call", status="in_progress", call=call._replace(arguments=""))
        index = self._add(item)
        item.call = call
        where = {"response_id": self.id, "item_id": item.id, "output_index": index, "call_id": call.id}
        delta = {"type": "response.function_call_arguments.delta", **where, "delta": call.arguments}
        self._tell(delta)
        done = {"type": "response.function_call_arguments.done", **where}
        self._tell({**done, "name": call.name, "arguments": call.arguments})
        item.status = "completed"
        self._finish(item, index)

    def done(self, status: ResponseStatus, **details: Any) -> None:
        """It is over; `details` say why, where that is not plain."""
        self.end(whole=status == "completed")
        self._status = status
        self._details = {"type": status, **details} if status != "completed" else None
        self._tell({"type": "response.done", "response": self.shown})

    def _add(self, item: Item) -> int:
        index, self._n_output = self._n_output, self._n_output + 1
        self._output = [*self._output, item][-MOST_OUTPUT:]
        self._items.add(item)
        about = {"response_id": self.id, "output_index": index, "item": item.shown}
        self._tell({"type": "response.output_item.added", **about})
        self._tell({"type": "conversation.item.added", "previous_item_id": item.before, "item": item.shown})
        return index

    def _finish(self, item: Item, index: int) -> None:
        self._tell({"type": "conversation.item.done", "previous_item_id": item.before, "item": item.shown})
        about = {"response_id": self.id, "output_index": index, "item": item.shown}
        self._tell({"type": "response.output_item.done", **about})

    def _tell_audio(self, data: bytes) -> None:
        if data:
            self._tell({"type": "response.output_audio.delta", **self._where, "delta": b64encode(data).decode()})

    @property
    def _where(self) -> dict[str, Any]:
        assert self.message is not None
        return {"response_id": self.id, "item_id": self.message.id, "output_index": self._index, "content_index": 0}

    @property
    def _part(self) -> dict[str, Any]:
        assert self.message is not None
        (part,) = self.message.content
        return {**part, "type": "text" if part["type"] == "output_text" else "audio"}
