"""Conversations in text that callers come back to: each is a `ChatSession` whose events have numbers.

An answer is made by a task of the conversation, not of a connection, so whoever loses the connection may come back
within the grace time and read on where they were. Later, the history is what a conversation goes on from.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from personaplex.cascade.engine import Message
from personaplex.cascade.responder import NAME as RESPONDER
from personaplex.cascade.session import MOST_MESSAGES, ChatSession
from personaplex.errors import Busy, Closed, ConversationError, PersonaPlexError, Unavailable
from personaplex.persona import Parts
from personaplex.server.history.record import Turn
from personaplex.server.history.store import Transcript
from personaplex.server.log import tell
from personaplex.server.refusals import Missing, body
from personaplex.server.service import Service

MOST_CHATS = 1000
"""That are held at once. Those that nobody is connected to go first; the history keeps what was said."""

MOST_EVENTS = 4096
"""Of a conversation that are kept for readers who are behind."""


@dataclass(frozen=True)
class Happening:
    """Event `number` of a conversation: what its readers are sent, and what went wrong if anything did."""

    number: int
    about: dict[str, Any]
    error: Exception | None = None

    @property
    def ends_answer(self) -> bool:
        """Whether nothing follows of the answer that was asked for."""
        return self.about["type"] in ("done", "error")


def thinker_name(parts: Parts) -> str:
    """What answers, as a person should read it: the responder says that it is no language model."""
    return RESPONDER if parts.llm == "responder" else str(parts.llm)


class Chat:
    """One conversation. It belongs to one event loop; any number of readers follow it."""

    def __init__(self, session: ChatSession, id: str, transcript: Transcript | None = None) -> None:
        self.session = session
        self.id = id
        self.transcript = transcript
        self.n_readers = 0
        # Numbers go on above those that were given before a restart.
        self._last = time.time_ns() // 1000
        self._first = self._last + 1
        self._events: deque[Happening] = deque(maxlen=MOST_EVENTS)
        self._changed = asyncio.Event()
        self._answering: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def persona(self) -> str:
        """Who the agent is."""
        return self.session.persona.name

    @property
    def last(self) -> int:
        """The number of the latest event."""
        return self._last

    def remembers(self, number: int) -> bool:
        """Whether all that happened after event `number` can still be read."""
        oldest = self._events[0].number if self._events else self._last + 1
        return max(self._first, oldest) - 1 <= number <= self._last

    def ask(self, text: str) -> int:
        """Say something; the number after which the answer's events follow.

        Raises ConversationError while the last answer is still coming, Closed when the session was deleted.
        """
        if self._closed:
            raise Closed("this session has ended, or was deleted; begin another")
        if self._answering is not None:
            raise ConversationError("the last answer is still coming; wait for its end, or cancel it, and ask again")
        before = self._last
        if self.transcript is not None:
            self.transcript.say("user", text)
        self._answering = asyncio.create_task(self._answer(text), name="personaplex-chat")
        return before

    async def _answer(self, text: str) -> None:
        began, first, said, was_cancelled = time.perf_counter(), None, "", False
        persona, model = self.persona, thinker_name(self.session.parts)
        error: Exception | None = None
        try:
            async with aclosing(self.session.say(text)) as tokens:
                async for token in tokens:
                    first = first or time.perf_counter()
                    said += token
                    self._tell({"type": "token", "token": token})
        except asyncio.CancelledError:
            was_cancelled = True
        except Exception as failed:
            error = failed
            if not isinstance(failed, PersonaPlexError):
                tell("an answer failed", error=failed)
        # Of what the language model is told no more the history has a copy.
        self.session.restore(self.session.history[-MOST_MESSAGES:])
        try:
            kept = await self._keep(said, persona)
        finally:
            self._answering = None
        if error is not None:
            self._tell({"type": "error", **body(error), "response": said}, error)
            return
        self._tell(
            {
                "type": "done",
                "response": said.strip(),
                "persona": persona,
                "model": model,
                "session_id": None if self.transcript is None else self.id,
                "latency_ms": _ms(began, time.perf_counter()),
                "first_token_ms": None if first is None else _ms(began, first),
                "cancelled": was_cancelled,
                "kept": kept,
            }
        )

    async def _keep(self, said: str, persona: str) -> bool:
        if self.transcript is None:
            return False
        if said.strip():
            self.transcript.say("assistant", said.strip(), persona=persona)
        return await asyncio.shield(self.transcript.settle())

    async def cancel(self) -> None:
        """Stop the answer that is coming, if one is; what was said of it is remembered."""
        if (answering := self._answering) is not None:
            answering.cancel()
            await asyncio.wait([answering])

    async def switch_persona(self, name: str) -> None:
        """Be somebody else from the next turn on. Raises PersonaError."""
        self.session.switch_persona(name)
        if self.transcript is not None:
            self.transcript.become(name)
        self._tell({"type": "persona_switched", "persona": name})

    async def reset(self) -> None:
        """Forget what was said, in the history too."""
        await self.cancel()
        self.session.reset()
        if self.transcript is not None:
            self.transcript.clear()
        self._tell({"type": "reset"})

    def _tell(self, about: dict[str, Any], error: Exception | None = None) -> None:
        self._last += 1
        self._events.append(Happening(self._last, about, error))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self, after: int) -> AsyncGenerator[Happening, None]:
        """What happens after event `after`, for ever. Raises ConversationError for a reader who fell too far behind."""
        while True:
            changed = self._changed
            if not self.remembers(after):
                raise ConversationError("you are too far behind; read the conversation anew from the history")
            for happening in [event for event in self._events if event.number > after]:
                yield happening
                after = happening.number
            if changed is self._changed:
                await changed.wait()

    async def answer(self, text: str) -> AsyncGenerator[Happening, None]:
        """Say something: the events of the answer. Closing this cancels what was not read."""
        after = self.ask(text)
        try:
            async with aclosing(self.follow(after)) as happenings:
                async for happening in happenings:
                    yield happening
                    if happening.ends_answer:
                        return
        finally:
            await self.cancel()

    async def close(self) -> None:
        """End, with the answer that is coming."""
        self._closed = True
        await self.cancel()
        await self.session.close()


class Chats:
    """All conversations of a server that somebody is connected to, or was a moment ago."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._chats: dict[str, Chat] = {}
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def stateless(self, persona: str | None) -> Chat:
        """A conversation that nobody comes back to and nothing keeps. Raises PersonaError, Unavailable."""
        self._check_open()
        return Chat(self._service.chat_session(persona), uuid.uuid4().hex)

    def start(self, persona: str | None = None, title: str | None = None) -> Chat:
        """A new conversation. Raises PersonaError, Unavailable, or Busy where too many are connected."""
        self._check_open()
        session = self._service.chat_session(persona)
        transcript = self._service.history.begin("chat", persona=session.persona.name, title=title)
        return self._hold(Chat(session, transcript.id, transcript))

    async def find(self, id: str) -> Chat:
        """The conversation `id`, also one of long ago. Raises Missing, and what `start` raises."""
        self._check_open()
        if (chat := self._chats.get(id)) is not None:
            return chat
        history = self._service.history
        found = await history.find(id)
        if found is None:
            raise Missing(f"there is no session {id[:64]!r}; it was deleted, or never kept")
        turns = await history.turns(id)
        if (chat := self._chats.get(id)) is not None:  # another caller was faster
            return chat
        known = found.persona if found.persona in self._service.personas else None
        session = self._service.chat_session(known)
        session.restore(Message(turn.role, turn.text) for turn in turns[-MOST_MESSAGES:])
        return self._hold(Chat(session, id, history.begin("chat", id=id, persona=session.persona.name)))

    def _check_open(self) -> None:
        if self._service.state == "draining":
            raise Unavailable("the server is about to stop and takes no new messages; try again later")

    def _hold(self, chat: Chat) -> Chat:
        if len(self._chats) >= MOST_CHATS:
            idle = next((one for one in self._chats.values() if not one.n_readers), None)
            if idle is None:
                raise Busy(len(self._chats), MOST_CHATS)
            self._forget(idle.id)
        self._chats[chat.id] = chat
        self._wait_for_reader(chat)
        return chat

    @asynccontextmanager
    async def reading(self, chat: Chat) -> AsyncIterator[Chat]:
        """Hold a conversation as long as somebody is connected, and a grace time longer."""
        chat.n_readers += 1
        if (timer := self._leaving.pop(chat.id, None)) is not None:
            timer.cancel()
        try:
            yield chat
        finally:
            chat.n_readers -= 1
            if not chat.n_readers and self._chats.get(chat.id) is chat:
                self._wait_for_reader(chat)

    def _wait_for_reader(self, chat: Chat) -> None:
        seconds = self._service.settings.resume_seconds
        self._leaving[chat.id] = asyncio.get_running_loop().call_later(seconds, self._forget, chat.id)

    def _forget(self, id: str) -> None:
        if (timer := self._leaving.pop(id, None)) is not None:
            timer.cancel()
        if (chat := self._chats.pop(id, None)) is not None:
            closing = asyncio.ensure_future(chat.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            tell("a conversation did not close", error=task.exception())

    async def remove(self, id: str | None = None) -> None:
        """End a conversation, or all: it is about to be deleted."""
        for one in list(self._chats) if id is None else [id]:
            self._forget(one)
        if self._closing:
            await asyncio.wait(self._closing)

    async def close(self) -> None:
        """End all of them."""
        await self.remove()


def as_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as callers read them."""
    return [{"role": turn.role, "content": turn.text, "persona": turn.persona, "at": turn.at} for turn in turns]


def _ms(began: float, ended: float) -> float:
    return round(1000 * (ended - began), 2)
