"""The protocol for conversations by turns (the cascade), as OpenAI's own service holds them: items, responses, tools.

A response begins when the agent begins to think (`AnswerBegan`), asked for or not, and is done when the answer is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from personaplex.by_turns import Call, Directions
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    AnswerBegan,
    AnswerOver,
    Audio,
    Error,
    Event,
    Interrupted,
    Settings,
    ToolCall,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import PersonaPlexError
from personaplex.server.realtime import wire
from personaplex.server.realtime.configuration import Configuration, Modality, directed, modality_of
from personaplex.server.realtime.items import Item, made_by_client
from personaplex.server.realtime.machine import Machine
from personaplex.server.realtime.response import Response
from personaplex.server.realtime.wire import Refused
from personaplex.server.refusals import message as words_of
from personaplex.units import SAMPLE_RATE


class Wanted(NamedTuple):
    """A response that was asked for and has not begun."""

    instructions: str | None = None
    directions: Directions | None = None
    modality: Modality | None = None
    metadata: Mapping[str, str] | None = None


class TurnsMachine(Machine):
    """A session by turns."""

    implementation = "cascade"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._wanted: Wanted | None = None
        self._next: Wanted | None = None  # asked for while its predecessor was still speaking
        self._unanswered: set[str] = set()
        self._is_interrupted = self._is_cancelled = False
        self._failure: PersonaPlexError | None = None
        self._cut: tuple[Item, int] | None = None
        self._last: Item | None = None
        self._n_uncommitted = 0
        super().__init__(*arguments, **options)

    @property
    def wants_time(self) -> bool:
        """While an answer is due or heard, or the user's turn has not ended."""
        is_heard = self.response is not None or self._wanted is not None
        return self.started and (is_heard or (self.now.turns is not None and self._speaking is not None))

    # The session.

    def _start(self) -> None:
        if self.started:
            return
        super()._start()
        self._do("direct", directions=self.now.directions)
        self._do("take_turns", turns=self.now.turn_taking())

    def _reconfigure(self, before: Configuration, settings: Settings) -> None:
        super()._reconfigure(before, settings)
        if not self.started:
            return
        if self.now.directions != before.directions:
            self._do("direct", directions=self.now.directions)
        if self.now.turn_taking() != before.turn_taking():
            self._speaking, self._n_uncommitted = None, 0
            self._do("take_turns", turns=self.now.turn_taking())

    # The user's turn.

    def _hear(self, pcm: np.ndarray) -> None:
        if self.now.turns is None and len(pcm):
            if not self._n_uncommitted:
                self._speaking = self._new_id("item")
                self._do("begin_turn", in_turn=True)
            self._n_uncommitted += len(pcm)
        super()._hear(pcm)

    def _commit(self, _: wire.Commit) -> None:
        if self._speaking is None:
            raise Refused("input_audio_buffer_commit_empty", "there is no sound of the user that could be committed")
        self._do("end_turn", in_turn=True)
        if self.now.turns is None:
            name, seconds = self._speaking, self._n_uncommitted / SAMPLE_RATE
            self._speaking, self._n_uncommitted = None, 0
            self._committed(name, seconds)

    def _clear(self, event: wire.Clear) -> None:
        super()._clear(event)
        if self._speaking is not None:
            self._do("drop_turn")
        if self.now.turns is None:
            self._speaking, self._n_uncommitted = None, 0

    # What happens.

    def happened(self, event: Event) -> None:  # noqa: PLR0912 - a table
        """An event of the conversation."""
        super().happened(event)
        if self.is_over:
            return
        answer = self.response
        by_hand = self.now.turns is None
        match event:
            case UserStarted() if not by_hand:
                self._user_began(event)
            case UserStopped() if not by_hand:
                self._user_ended(event)
            case UserText():
                self._user_text(event)
                self._is_cancelled &= answer is not None  # whatever is answered now was not cancelled
            case AnswerBegan():
                self._begin()
            case AgentStarted() if answer is not None and answer.message is None:
                answer.begin()
            case Audio(pcm=pcm) if answer is not None and answer.message is not None:
                answer.hear(pcm, self.now)
            case AgentText(text=text) if answer is not None and answer.message is not None:
                answer.say(text)
            case ToolCall(name=name, arguments=arguments, call_id=call_id) if answer is not None:
                self._unanswered.add(call_id)
                answer.call(Call(call_id, name, arguments))
            case Interrupted():
                self._is_interrupted = True
            case AgentEnded() if answer is not None and answer.message is not None:
                self._last = answer.message
                answer.end(whole=not (self._is_interrupted or self._is_cancelled))
            case AnswerOver(dropped=dropped):
                self._over(dropped=dropped)
            case Error(error=error):
                self._failure = error
            case _:
                pass

    def _begin(self) -> None:
        self._over(dropped=True)  # if its end was not told
        wanted, self._wanted = self._wanted or Wanted(), None
        self._is_interrupted, self._failure = False, None
        self.response = Response(
            self._new_id("resp"), self.now, self.items, self._tell, self._new_id,
            modality=wanted.modality, metadata=wanted.metadata, epoch=self.epoch,
        )  # fmt: skip

    def _over(self, *, dropped: bool) -> None:
        answer, self.response = self.response, None
        if answer is None:
            return
        if dropped:
            self.epoch += 1
            answer.done("cancelled", reason="client_cancelled" if self._is_cancelled else "turn_detected")
        elif self._failure is not None and not answer.said and not answer.calls:
            answer.done("failed", error={"type": "server_error", "message": words_of(self._failure)})
        else:
            answer.done("completed")
        self._cut_short()
        self._is_cancelled = self._is_interrupted = False
        if self._next is not None:
            wanted, self._next = self._next, None
            self._respond(wanted)

    # Responses.

    def _response_create(self, event: wire.ResponseCreate) -> None:
        asked = event.response or wire.ResponseObject()
        if asked.conversation not in (None, "auto") or asked.input:
            raise Refused("out_of_band_unsupported", "responses belong to the conversation here: no input, no 'none'")
        own = directed(self.now.directions, asked)
        wanted = Wanted(
            asked.instructions, None if own == self.now.directions else own, modality_of(asked), asked.metadata
        )
        if self.response is None and self._wanted is None:
            self._start()
            self._respond(wanted)
        elif self.response is not None and self.response.calls and not self._unanswered and self._next is None:
            self._next = wanted  # its tools are done before it has said what it says beside them
        else:
            raise Refused(
                "conversation_already_has_active_response",
                "a response is under way; wait for response.done, or cancel it",
            )

    def _respond(self, wanted: Wanted) -> None:
        self._wanted, self._is_cancelled = wanted, False
        self._do("respond", instructions=wanted.instructions, directions=wanted.directions)

    def _cancel(self) -> None:
        if self.response is None and self._wanted is None:
            raise Refused("response_cancel_not_active", "there is no active response")
        self._is_cancelled = True
        self._wanted = self._next = None
        self._do("cancel")

    # Items.

    def _item_create(self, event: wire.ItemCreate) -> None:
        if event.previous_item_id not in (None, self.items.last):
            raise Refused("unsupported", "items are put at the end of the conversation", param="previous_item_id")
        if event.item.id is not None and event.item.id in self.items:
            raise Refused("item_exists", f"there is an item {event.item.id[:80]!r} already", param="item.id")
        item = made_by_client(event.item, event.item.id or self._new_id("item"), self.items)
        self._start()
        self.items.add(item)
        if item.type == "function_call_output" and item.call is not None:
            self._unanswered.discard(item.call.id)
        self._do("add", message=item.message)
        self._tell_item(item)

    def _item_delete(self, event: wire.ItemDelete) -> None:
        item = self.items.find(event.item_id)
        if self.response is not None and self.response.message is item:
            raise Refused("item_in_progress", "the item is being said; cancel its response first", param="item_id")
        self.items.remove(item.id)
        if item.text or item.type != "message":
            self._do("forget", message=item.message)
        self._tell({"type": "conversation.item.deleted", "item_id": item.id})

    def _item_truncate(self, event: wire.ItemTruncate) -> None:
        item = self.items.find(event.item_id)
        message = None if self.response is None else self.response.message
        if item.role != "assistant" or (item is not message and item is not self._last):
            raise Refused("item_not_truncatable", "only what the agent said last can be cut short", param="item_id")
        if event.audio_end_ms > item.audio_ms:
            raise Refused(
                "invalid_value",
                f"the item has {item.audio_ms} ms of sound, which is less than {event.audio_end_ms}",
                param="audio_end_ms",
            )
        self._cut = item, event.audio_end_ms
        if item is message:  # whoever cuts short what is being said has stopped playing it
            self._is_cancelled = True
            self._next = None
            self._do("cancel")
        elif self.response is None:
            self._cut_short()

    def _cut_short(self) -> None:
        """Remember of what was said only what was played: as the client says, or as it acknowledged."""
        cut, self._cut = self._cut, None
        if cut is None and self._last is not None and self._is_interrupted:
            played = self._played.get(self._last.id)
            cut = None if played is None or played >= self._last.audio_ms else (self._last, played)
        if cut is None:
            return
        item, audio_end_ms = cut
        heard = item.cut(audio_end_ms)
        self._do("truncate", text=heard)
        about = {"item_id": item.id, "content_index": 0, "audio_end_ms": audio_end_ms}
        self._tell({"type": "conversation.item.truncated", **about})
