"""What follows from a message of the client, and from an event of the conversation. No socket, no clock, no thread.

A machine is given one or the other and leaves what is to be done in `take()`: events to tell the client, sound and
requests for the conversation. This file has what both modes share; see `by_turns` and `duplex`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from personaplex.conversation import (
    Capabilities,
    Ended,
    Error,
    Event,
    Overrun,
    Ready,
    Settings,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import AudioError, PersonaPlexError
from personaplex.server.realtime import wire
from personaplex.server.realtime.configuration import Configuration, shown
from personaplex.server.realtime.dialect import Dialect, spoken_by, worded
from personaplex.server.realtime.formats import Decoder
from personaplex.server.realtime.items import Item, Items
from personaplex.server.realtime.response import Response
from personaplex.server.realtime.wire import Refused
from personaplex.server.refusals import message as words_of
from personaplex.server.refusals import refusal
from personaplex.units import FRAME_SECONDS

FRAME_MS = round(1000 * FRAME_SECONDS)


class Tell(NamedTuple):
    """Tell the client; `sounds`: it holds sound of the agent."""

    event: dict[str, Any]
    sounds: bool = False


class Start(NamedTuple):
    """Open the conversation."""

    settings: Settings


class Hear(NamedTuple):
    """Give the conversation the user's sound, float32 [S] at 24 kHz."""

    pcm: np.ndarray


class Do(NamedTuple):
    """Call a method of the conversation now; where `in_turn`, once all sound before it was heard."""

    what: str
    arguments: Mapping[str, Any] = {}
    in_turn: bool = False


class DropSound(NamedTuple):
    """Forget the sound that the conversation was not given yet."""


class Resume(NamedTuple):
    """Go on with another session, of which the client has the messages up to `seq`."""

    token: str
    seq: int


class Forget(NamedTuple):
    """The client has the messages up to `seq`."""

    seq: int


class Close(NamedTuple):
    """End the session and its connection."""

    code: int
    reason: str


Action: TypeAlias = Tell | Start | Hear | Do | DropSound | Resume | Forget | Close


class About(NamedTuple):
    """What a session says of itself. `choose` makes a configuration what a conversation starts with, or raises."""

    id: str
    model: str
    resume_token: str
    resume_seconds: float
    capabilities: Capabilities
    choose: Callable[[Configuration], Settings]


class Machine:
    """One session. `client`, `binary` and `happened` are what comes in; `take` is what goes out."""

    implementation: ClassVar[str]
    _handlers: ClassVar[dict[type, str]] = {
        wire.SessionUpdate: "_session_update",
        wire.SessionStart: "_session_start",
        wire.SessionClose: "_session_close",
        wire.SessionResume: "_session_resume",
        wire.Heartbeat: "_heartbeat",
        wire.EventAck: "_event_ack",
        wire.Append: "_append",
        wire.Commit: "_commit",
        wire.Clear: "_clear",
        wire.OutputClear: "_output_clear",
        wire.ItemCreate: "_item_create",
        wire.ItemRetrieve: "_item_retrieve",
        wire.ItemDelete: "_item_delete",
        wire.ItemTruncate: "_item_truncate",
        wire.ResponseCreate: "_response_create",
        wire.ResponseCancel: "_response_cancel",
        wire.PlaybackAck: "_playback_ack",
    }

    def __init__(self, about: About, dialect: Dialect = "ga", configuration: Configuration | None = None) -> None:
        self.about = about
        self.dialect: Dialect = dialect
        self.now = configuration or Configuration()
        self.started = False
        self.is_over = False
        self.epoch = 0
        self.items = Items()
        self.response: Response | None = None
        self._decoder = Decoder(self.now.input)
        self._actions: list[Action] = []
        self._n_ids = 0
        self._n_heard = 0
        """Samples of the user since the conversation began."""
        self._speaking: str | None = None
        self._since = 0
        self._seconds: dict[str, float] = {}
        self._awaiting: deque[str] = deque(maxlen=8)
        self._written: dict[str, str] = {}
        self._played: dict[str, int] = {}
        self._tell({"type": "session.created", "session": self.session})

    # What goes out.

    def take(self) -> list[Action]:
        """What is to be done, in this order; each once."""
        actions, self._actions = self._actions, []
        return actions

    def _tell(self, event: dict[str, Any]) -> None:
        told = worded(event, self.dialect)
        if told is not None:
            self._actions.append(Tell(told, sounds=event["type"] == "response.output_audio.delta"))

    def _do(self, what: str, *, in_turn: bool = False, **arguments: Any) -> None:
        self._actions.append(Do(what, arguments, in_turn))

    def _new_id(self, kind: str) -> str:
        self._n_ids += 1
        return f"{kind}_{self.about.id}_{self._n_ids}"

    @property
    def session(self) -> dict[str, Any]:
        """The session as clients are told it."""
        able = self.about.capabilities
        chosen = shown(self.now, by_turns=self.by_turns, transcribes=able.user_text)
        return chosen | {
            "id": f"sess_{self.about.id}",
            "model": self.about.model,
            "mode": "cascade" if self.by_turns else "duplex",
            "epoch": self.epoch,
            "resume_token": self.about.resume_token,
            "resume_seconds": self.about.resume_seconds,
            "capabilities": self.capabilities,
        }

    @property
    def by_turns(self) -> bool:
        """Whether there are turns, or both speak at once."""
        return not self.about.capabilities.full_duplex

    @property
    def capabilities(self) -> dict[str, Any]:
        """What a client may ask for, as vLLM-Omni's duplex protocol names it, and what it leaves out."""
        able = self.about.capabilities
        return {
            "implementation_level": self.implementation,
            "chunk_period_ms": FRAME_MS,
            "input_modes": ["append_audio_chunk", *(["text"] if able.text_input else [])],
            "supports_input_append": True,
            "supports_multi_session": True,
            "supports_session_resume": True,
            "supports_cancel": able.cancel,
            "supports_persona_update": able.update,
            "supports_voice_update": able.update,
            "supports_user_transcripts": able.user_text,
            "supports_barge_in": self.by_turns,
            "supports_audio_truncate": self.by_turns,
            "supports_client_commit": self.by_turns,
            "supports_tools": self.by_turns and able.tools,
        }

    @property
    def wants_time(self) -> bool:
        """Whether the conversation must go on although the client sends no sound: something of it is due."""
        return False

    # What comes in.

    def client(self, text: str) -> None:
        """A message of the client."""
        if self.is_over:
            return
        event_id: str | None = None
        try:
            event = wire.read(text)
            event_id = event.event_id
            getattr(self, self._handlers[type(event)])(event)
        except Refused as refused:
            self._refuse(refused, event_id)
        except PersonaPlexError as error:
            self._refuse(_refused(error), event_id)

    def binary(self) -> None:
        """A message that is no text."""
        self._refuse(Refused("binary_not_supported", "messages are JSON in text frames; sound is base64 in them"), None)

    def refuse(self, code: str, message: str) -> None:
        """Something that was asked for cannot be."""
        self._refuse(Refused(code, message), None)

    def _refuse(self, refused: Refused, event_id: str | None) -> None:
        self._tell(
            {
                "type": "error",
                "error": {
                    "type": refused.kind,
                    "code": refused.code,
                    "message": refused.message,
                    "param": refused.param,
                    "event_id": event_id or refused.event_id,
                },
            }
        )

    def failed(self, error: BaseException, code: int) -> None:
        """The conversation could not be opened, or broke down: tell, and end with WebSocket code `code`."""
        self._refuse(_refused(error), None)
        self._end("error", code)

    def happened(self, event: Event) -> None:
        """An event of the conversation."""
        if self.is_over:
            return
        match event:
            case Ready(seed=seed):
                self._tell({"type": "session.ready", "session_id": f"sess_{self.about.id}", "seed": seed})
            case Overrun(dropped=dropped, total=total):
                about = {"dropped_ms": dropped * FRAME_MS, "total_ms": total * FRAME_MS}
                self._tell({"type": "input_audio_buffer.overrun", **about})
            case Error(error=error):
                self._refuse(_refused(error), None)
            case Ended(reason=reason):
                self._ended(reason)
                codes = {"shutdown": 1012, "error": 1011, "unread": 1008}
                self._end(reason, codes.get(reason, 1000))
            case _:
                pass

    def _ended(self, reason: str) -> None:
        if self.response is not None:
            self.response.done("cancelled", reason=f"session_{reason}")
            self.response = None

    def _end(self, reason: str, code: int) -> None:
        self.is_over = True
        self._tell({"type": "session.closed", "session_id": f"sess_{self.about.id}", "reason": reason})
        self._actions.append(Close(code, reason))

    # The session.

    def _session_update(self, event: wire.SessionUpdate) -> None:
        # First of all: a client that is refused something is told in the words that it understands.
        self.dialect = spoken_by(event.session) or self.dialect
        new = self.now.changed(event.session)
        settings = self.about.choose(new)
        before, self.now = self.now, new
        try:
            self._reconfigure(before, settings)
        except (Refused, PersonaPlexError):
            self.now = before
            raise
        if self.now.input != before.input:
            self._decoder = Decoder(self.now.input)
        self._tell({"type": "session.updated", "session": self.session})

    def _reconfigure(self, before: Configuration, settings: Settings) -> None:
        """Have a conversation that was started become what is asked for now. Raises Refused."""
        if not self.started:
            return
        chosen = [(now.seed, now.sampling, now.recording) for now in (before, self.now)]
        if chosen[0] != chosen[1]:
            raise Refused("session_started", "seed, sampling and recording are chosen before the conversation starts")
        role = (self.now.persona, self.now.instructions) != (before.persona, before.instructions)
        voice = self.now.voice != before.voice
        if (role or voice) and not self.about.capabilities.update:
            code = "persona_update_unsupported" if role else "voice_update_unsupported"
            raise Refused(code, "voice and role of this model cannot be changed in a conversation; start another")
        if role or voice:
            changes: dict[str, Any] = {"voice": settings.voice or ""} if voice else {}
            # A turn's history is kept only with something to read, which a voice of one's own is not.
            changes |= {"prompt": settings.prompt} if role or self.by_turns else {}
            keep = self.by_turns and any(changes.values())
            self._do("update", **changes, keep_history=keep)

    def _session_start(self, _: wire.SessionStart) -> None:
        self._start()

    def _start(self) -> None:
        """The conversation begins with whatever needs it first."""
        if not self.started:
            self._actions.append(Start(self.about.choose(self.now)))
            self.started = True

    def _session_close(self, _: wire.SessionClose) -> None:
        self._ended("closed")
        self._end("client_close", 1000)

    def _session_resume(self, event: wire.SessionResume) -> None:
        if self.started:
            raise Refused("session_started", "a connection that has begun a conversation cannot go on with another")
        seq = event.server_event_seq
        seq = event.last_received_server_event_seq if seq is None else seq
        self._actions.append(Resume(event.resume_token, seq or 0))

    def _heartbeat(self, _: wire.Heartbeat) -> None:
        self._tell({"type": "session.heartbeat_ack", "session_id": f"sess_{self.about.id}"})

    def _event_ack(self, event: wire.EventAck) -> None:
        self._actions.append(Forget(event.server_event_seq))

    # The user's sound.

    def _append(self, event: wire.Append) -> None:
        try:
            data = b64decode(event.audio, validate=True)
        except (binascii.Error, ValueError):
            raise Refused("invalid_value", "the audio is no base64", param="audio") from None
        try:
            pcm = self._decoder.push(data)
        except AudioError as error:
            raise Refused("invalid_value", str(error), param="audio") from None
        self._start()
        self._hear(pcm)

    def _hear(self, pcm: np.ndarray) -> None:
        if len(pcm):
            self._n_heard += len(pcm)
            self._actions.append(Hear(pcm))

    def _commit(self, _: wire.Commit) -> None:
        raise NotImplementedError

    def _clear(self, _: wire.Clear) -> None:
        self._decoder = Decoder(self.now.input)
        self._actions.append(DropSound())
        self._tell({"type": "input_audio_buffer.cleared"})

    # What the user says.

    def _user_began(self, event: UserStarted) -> None:
        self._speaking, self._since = self._new_id("item"), event.frame
        about = {"item_id": self._speaking, "audio_start_ms": event.frame * FRAME_MS}
        self._tell({"type": "input_audio_buffer.speech_started", **about})

    def _user_ended(self, event: UserStopped) -> None:
        if self._speaking is None:
            return
        about = {"item_id": self._speaking, "audio_end_ms": event.frame * FRAME_MS}
        self._tell({"type": "input_audio_buffer.speech_stopped", **about})
        name, self._speaking = self._speaking, None
        self._committed(name, (event.frame - self._since) * FRAME_SECONDS)

    def _committed(self, name: str, seconds: float) -> None:
        """What the user said in so many seconds is an item; its text follows when it is understood."""
        self._seconds[name] = round(seconds, 3)
        item = Item(name, "message", "user", content=[{"type": "input_audio", "transcript": None}])
        self.items.add(item)
        self._tell({"type": "input_audio_buffer.committed", "item_id": name, "previous_item_id": item.before})
        self._tell_item(item)
        self._awaiting.append(name)

    def _user_text(self, event: UserText) -> None:
        name = self._speaking or (self._awaiting[-1] if self._awaiting else None)
        if event.final and self._awaiting:
            name = self._awaiting.popleft()
        if name is None:
            return
        about = {"item_id": name, "content_index": 0}
        kind = "conversation.item.input_audio_transcription"
        if not event.final:
            before = self._written.get(name, "")
            # What was told cannot be taken back: a guess that changed is told when it is certain.
            if self.now.transcribes and event.text.startswith(before) and event.text != before:
                self._written[name] = event.text
                self._tell({"type": f"{kind}.delta", **about, "delta": event.text[len(before) :]})
            return
        self._written.pop(name, None)
        length = {"type": "duration", "seconds": self._seconds.pop(name, 0.0)}
        if name in self.items:
            self.items.find(name).content[0]["transcript"] = event.text
        if self.now.transcribes:
            self._tell({"type": f"{kind}.completed", **about, "transcript": event.text, "usage": length})

    # Items.

    def _tell_item(self, item: Item) -> None:
        about = {"previous_item_id": item.before, "item": item.shown}
        self._tell({"type": "conversation.item.added", **about})
        self._tell({"type": "conversation.item.done", **about})

    def _item_create(self, event: wire.ItemCreate) -> None:
        raise NotImplementedError

    def _item_retrieve(self, event: wire.ItemRetrieve) -> None:
        self._tell({"type": "conversation.item.retrieved", "item": self.items.find(event.item_id).shown})

    def _item_delete(self, event: wire.ItemDelete) -> None:
        raise NotImplementedError

    def _item_truncate(self, event: wire.ItemTruncate) -> None:
        raise NotImplementedError

    # Responses.

    def _response_create(self, event: wire.ResponseCreate) -> None:
        raise NotImplementedError

    def _response_cancel(self, event: wire.ResponseCancel) -> None:
        if event.response_id is not None and (self.response is None or event.response_id != self.response.id):
            raise Refused("response_cancel_not_active", f"there is no active response {event.response_id[:80]!r}")
        self._cancel()

    def _output_clear(self, _: wire.OutputClear) -> None:
        self._cancel()
        self._tell({"type": "output_audio_buffer.cleared"})

    def _cancel(self) -> None:
        raise NotImplementedError

    def _playback_ack(self, event: wire.PlaybackAck) -> None:
        message = None if self.response is None else self.response.message
        name = event.item_id or (message.id if message is not None else self.items.last)
        if name is None or name not in self.items:
            raise Refused("item_not_found", "there is no item that could have been played", param="item_id")
        sent = self.items.find(name).audio_ms
        self._played = {name: min(max(event.played_ms, self._played.get(name, 0)), sent)}
        about = {"item_id": name, "played_ms": self._played[name], "sent_ms": sent}
        self._tell({"type": "playback.acknowledged", **about})


def _refused(error: BaseException) -> Refused:
    """What a client is told of an error."""
    how = refusal(error)
    return Refused(how.code, words_of(error), kind=how.type)


__all__ = ["About", "Action", "Close", "Do", "DropSound", "Forget", "Hear", "Machine", "Resume", "Start", "Tell"]
