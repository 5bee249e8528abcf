"""The protocol for a model that hears and speaks at once, after vLLM-Omni's contract for such models.

One response is open all the time, and holds every frame of the agent; nothing is committed and nothing asked for. A
cancel ends it, and with the next one a new epoch begins: of what was being said not a frame is told after that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Degenerate,
    Event,
    Interrupted,
    Ready,
    Settings,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.server.realtime import wire
from personaplex.server.realtime.configuration import Configuration
from personaplex.server.realtime.items import made_by_client
from personaplex.server.realtime.machine import Machine
from personaplex.server.realtime.response import Response
from personaplex.server.realtime.wire import Refused

FENCED_FRAMES = 25
"""Two seconds, more than a backend takes to silence its agent: so long nothing is told after a cancel, at most."""


class DuplexMachine(Machine):
    """A session with a duplex model."""

    implementation = "model_native_duplex"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._agent_speaks = False
        self._n_fenced = 0
        super().__init__(*arguments, **options)

    def _reconfigure(self, before: Configuration, settings: Settings) -> None:
        super()._reconfigure(before, settings)
        if self.now.directions.tools:
            self.now = replace(self.now, directions=replace(self.now.directions, tools=()))
            why = "a duplex model calls no tools, the cascade does; the rest holds"
            self._refuse(Refused("tools_unsupported", why, param="session.tools"), None)

    def happened(self, event: Event) -> None:  # noqa: PLR0912 - a table
        """An event of the conversation."""
        super().happened(event)
        if self.is_over:
            return
        match event:
            case UserStarted():
                self._user_began(event)
            case UserStopped():
                self._user_ended(event)
            case UserText():
                self._user_text(event)
            case Ready(kept=kept):
                if not kept:
                    self._agent_speaks = False
                if self.response is None and not self._n_fenced:
                    self._open()
            case AgentStarted():
                self._agent_speaks = True
                self._decided("response.speak", event)
            case AgentEnded():
                self._agent_speaks = False
                self._lift_fence()
                self._decided("response.listen", event)
            case Interrupted():
                self._lift_fence()
            case Audio(pcm=pcm):
                self._frame(pcm)
            case AgentText(text=text) if self.response is not None:
                self.response.say(text)
            case Degenerate(kind=kind) if self.response is not None:
                self._tell({"type": "response.degenerate", "response_id": self.response.id, "kind": kind})
            case _:
                pass

    def _decided(self, what: str, event: Event) -> None:
        if self.response is not None:
            about = {"response_id": self.response.id, "epoch": self.epoch, "at_ms": event.frame * 80}
            self._tell({"type": what, **about})

    def _frame(self, pcm: np.ndarray) -> None:
        if self._n_fenced:
            self._n_fenced -= 1
            if not self._n_fenced:
                self._open()
        elif self.response is not None:
            self.response.hear(pcm, self.now)

    def _open(self) -> None:
        self.response = Response(self._new_id("resp"), self.now, self.items, self._tell, self._new_id, epoch=self.epoch)
        self.response.begin()

    def _lift_fence(self) -> None:
        if self._n_fenced:
            self._n_fenced = 0
            self._open()

    def _cancel(self) -> None:
        if not self.about.capabilities.cancel:
            raise Refused("unsupported", "this model cannot be made to stop")
        if self.response is None:
            raise Refused("response_cancel_not_active", "there is no active response")
        self._do("cancel")
        self.response.done("cancelled", reason="client_cancelled")
        self.response = None
        self.epoch += 1
        if self._agent_speaks:
            self._n_fenced = FENCED_FRAMES
        else:
            self._open()

    def _user_ended(self, event: UserStopped) -> None:
        if self.about.capabilities.user_text:
            super()._user_ended(event)
        elif self._speaking is not None:  # nobody writes it down, so that there is no item of it
            about = {"item_id": self._speaking, "audio_end_ms": event.frame * 80}
            self._tell({"type": "input_audio_buffer.speech_stopped", **about})
            self._speaking = None

    # What a duplex model does not need, and what it cannot.

    def _commit(self, _: wire.Commit) -> None:
        raise Refused("client_commit_unsupported", "a duplex model hears all the time; there is nothing to commit")

    def _response_create(self, _: wire.ResponseCreate) -> None:
        if self.response is None and not self.started:
            self._start()
            return
        raise Refused(
            "conversation_already_has_active_response",
            "a duplex model's one response is open all the time, and it speaks when it wants to",
        )

    def _item_create(self, event: wire.ItemCreate) -> None:
        item = made_by_client(event.item, event.item.id or self._new_id("item"), self.items)
        if item.type != "message" or item.role != "user" or not self.about.capabilities.text_input:
            raise Refused("unsupported", "this model takes only what a user writes", param="item")
        if item.id in self.items:
            raise Refused("item_exists", f"there is an item {item.id[:80]!r} already", param="item.id")
        self._start()
        self.items.add(item)
        self._do("send_text", text=item.text)
        self._tell_item(item)

    def _item_delete(self, event: wire.ItemDelete) -> None:
        self.items.find(event.item_id)
        raise Refused("item_delete_unsupported", "what a duplex model has heard it cannot forget")

    def _item_truncate(self, event: wire.ItemTruncate) -> None:
        self.items.find(event.item_id)
        raise Refused("audio_truncate_unsupported", "what a duplex model has said it has said; cancel makes it stop")
