"""A session that lives: its machine, its conversation and its journal, with a connection or waiting for one.

All of it is the event loop's; the conversation's own threads are behind its events.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from personaplex.conversation import Audio, Error, Event, Overrun, Settings
from personaplex.errors import Closed, PersonaPlexError
from personaplex.server.log import tell
from personaplex.server.realtime.by_turns import TurnsMachine
from personaplex.server.realtime.configuration import Configuration
from personaplex.server.realtime.connection import Connection
from personaplex.server.realtime.dialect import Dialect
from personaplex.server.realtime.duplex import DuplexMachine
from personaplex.server.realtime.intake import Intake
from personaplex.server.realtime.journal import Journal
from personaplex.server.realtime.machine import (
    About,
    Action,
    Close,
    Do,
    DropSound,
    Forget,
    Hear,
    Machine,
    Resume,
    Start,
    Tell,
)
from personaplex.server.refusals import refusal
from personaplex.server.scribe import Scribe
from personaplex.server.service import Mode, Service
from personaplex.server.session import Session
from personaplex.units import FRAME_SAMPLES, FRAME_SECONDS

CLIENT = "realtime"
"""What these callers are called in numbers and logs."""

QUIET_SECONDS = 0.2
"""Who sends no sound for so long sends none: what is due then (an answer) is lived with silence."""


@dataclass
class Wish:
    """That another session is to be gone on with."""

    token: str
    seq: int


class Live:
    """A session of a service. `gone` is called once, when it has ended for good."""

    def __init__(self, service: Service, mode: Mode, dialect: Dialect, gone: Callable[[Live], None]) -> None:
        self.token = secrets.token_urlsafe(24)
        self.wish: Wish | None = None
        self._service = service
        self._mode = mode
        self._gone = gone
        name = secrets.token_hex(8)
        backend = service.backends.of(mode)
        assert backend is not None
        model = service.model_name if mode == "duplex" else "cascade"
        seconds = service.settings.resume_seconds
        about = About(name, model, self.token, seconds, backend.capabilities, self._choose)
        self._journal = Journal(name)
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._target: Any = None
        self._intake = Intake()
        self._scribe: Scribe | None = None
        self._n_lived = 0
        self._last_sound = -QUIET_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()
        self._grace: asyncio.TimerHandle | None = None
        self._untold_end: tuple[int, str] | None = None
        self._is_free = False
        self.is_over = False
        kind: type[Machine] = DuplexMachine if mode == "duplex" else TurnsMachine
        self._machine = kind(about, dialect)

    # The client.

    def attach(self, connection: Connection, seq: int = 0) -> bool:
        """Tell a connection all that followed message `seq`, and from now on; False where that is not kept."""
        if (missed := self._journal.after(seq)) is None:
            return False
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        before, self._connection = self._connection, connection
        if before is not None:
            before.close(1000, "replaced: the session goes on in another connection")
        for kept in missed:
            connection.send(kept)
        if self._untold_end is not None:
            self._close(*self._untold_end)
        self._perform()
        return True

    def resume(self, connection: Connection, seq: int) -> bool:
        """The same for a client that comes back: it is told first where it is."""
        if self._journal.after(seq) is None:
            return False
        about = self._machine.session
        event = {
            "type": "session.resumed",
            "event_id": f"resumed_{about['id']}",
            "session_id": about["id"],
            "session": about,
            "resume_token": self.token,
            "server_event_seq": seq,
            "replayed_to": self._journal.seq,
        }
        connection.send(Journal.unnumbered(event))
        return self.attach(connection, seq)

    def detach(self, connection: Connection, *, ends: bool) -> None:
        """The connection is gone. Not `ends`, the client may come back for a while."""
        if connection is not self._connection:
            return  # the session goes on elsewhere
        self._connection = None
        seconds = self._service.settings.resume_seconds
        if ends or self.is_over or self._session is None or not seconds:
            self.end()
        else:
            self._grace = asyncio.get_running_loop().call_later(seconds, self.end)

    def text(self, message: str) -> None:
        """A message of the client."""
        self._machine.client(message)
        self._perform()

    def binary(self) -> None:
        """One that is no text."""
        self._machine.binary()
        self._perform()

    def refuse(self, code: str, message: str) -> None:
        """Tell the client that something cannot be."""
        self._machine.refuse(code, message)
        self._perform()

    def fail(self, error: BaseException) -> None:
        """End it, and say why."""
        if not self._machine.is_over:
            self._machine.failed(error, refusal(error).close_code)
            self._perform()

    # What the machine wants done.

    def _perform(self) -> None:
        while actions := self._machine.take():
            for action in actions:
                self._act(action)
            self._give()

    def _act(self, action: Action) -> None:
        match action:
            case Tell(event, sounds):
                kept = self._journal.add(event, sounds=sounds)
                if self._connection is not None:
                    self._connection.send(kept)
            case Start(settings):
                self._open(settings)
            case Hear(pcm):
                self._last_sound = time.monotonic()
                self._take(pcm)
            case Do(in_turn=True):
                self._intake.put(action)
            case Do():
                self._ask(action)
            case DropSound():
                self._intake.drop()
            case Forget(seq):
                self._journal.forget(seq)
            case Resume(token, seq):
                self.wish = Wish(token, seq)
            case Close(code, reason):
                self._close(code, reason)

    def _choose(self, now: Configuration) -> Settings:
        return self._service.choose(
            now.persona,
            voice=now.voice,
            prompt=now.instructions,
            seed=now.seed,
            sampling=now.sampling or None,
            mode=self._mode,
        )

    def _open(self, settings: Settings) -> None:
        try:
            self._session = self._service.open(self._mode, settings, client=CLIENT)
            # What belongs to turns is no part of every conversation.
            self._target = self._session if self._mode == "duplex" else self._session.by_turns
        except Exception as error:
            if not isinstance(error, PersonaPlexError):
                tell("call failed", error=error)
            self._machine.failed(error, refusal(error).close_code)
            return
        now = self._machine.now
        persona = now.persona or self._service.settings.persona
        transcript = self._service.history.begin("realtime", persona=persona, id=self._machine.session["id"])
        self._scribe = Scribe(transcript, persona, records=now.recording)
        self._begin(self._listen(self._session), "listen")
        if self._mode == "cascade":
            self._begin(self._pass_time(), "time")

    def _begin(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"personaplex-realtime-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ask(self, do: Do) -> None:
        if self._target is None:
            return  # it could not be opened, as was told
        try:
            getattr(self._target, do.what)(**do.arguments)
            if self._scribe is not None and (text := written(do)):
                self._scribe.typed(text)
        except Closed:
            pass  # its last event is on its way
        except PersonaPlexError as error:
            self._happen(Error(self._n_lived, error))

    def _take(self, pcm: np.ndarray) -> None:
        shed = self._intake.push(pcm, time.monotonic())
        if shed:
            n, total = -(-shed // FRAME_SAMPLES), -(-self._intake.n_shed // FRAME_SAMPLES)
            self._machine.happened(Overrun(self._n_lived, n, total))
            if self._session is not None:
                self._session.overran(n)

    def _give(self) -> None:
        """As much of the user's sound as the conversation has room for."""
        while self._session is not None and (item := self._intake.next(self._n_lived)) is not None:
            if isinstance(item, Do):
                self._ask(item)
                continue
            try:
                self._session.send(item)
                if self._scribe is not None:
                    self._scribe.heard(item)
            except Closed:
                return
            except PersonaPlexError as error:
                self._happen(Error(self._n_lived, error))

    # The conversation.

    def _happen(self, event: Event) -> None:
        self._machine.happened(event)
        if self._scribe is not None:
            self._scribe.saw(event)

    async def _listen(self, session: Session) -> None:
        try:
            async for event in session.events():
                self._n_lived += isinstance(event, Audio) or (event.dropped if isinstance(event, Overrun) else 0)
                self._happen(event)
                self._give()
                self._perform()
        except Exception as error:
            tell("call failed", error=error)
            self.fail(error)

    async def _pass_time(self) -> None:
        """While something is due and no sound comes, silence does; a client that is away is waited for."""
        silence = np.zeros(FRAME_SAMPLES, np.float32)
        due = time.monotonic()
        while True:
            due = max(due + FRAME_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            is_quiet = time.monotonic() - self._last_sound > QUIET_SECONDS
            if self._connection is not None and is_quiet and self._intake.is_empty and self._machine.wants_time:
                self._take(silence)
                self._give()
                self._perform()

    # The end.

    def _close(self, code: int, reason: str) -> None:
        """The conversation is over: whoever is away is told so, after what went before, when they come back in time."""
        if self._connection is not None:
            self._connection.close(code, reason)
        elif self._grace is not None:
            self._untold_end = code, reason
            self._free()
            return
        self.end()

    def _free(self) -> None:
        if self._is_free:
            return
        self._is_free = True
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if self._session is not None:
            self._session.close()
        if self._scribe is not None:
            self._scribe.close()

    def end(self) -> None:
        """End for good, and free the slot. Harmless when it has ended."""
        if self.is_over:
            return
        self.is_over = True
        if self._grace is not None:
            self._grace.cancel()
        self._free()
        self._gone(self)


def written(do: Do) -> str:
    """What the user wrote, if that is what the conversation is told."""
    if do.what == "send_text":
        return str(do.arguments["text"])
    message = do.arguments.get("message") if do.what == "add" else None
    return message.content if message is not None and message.role == "user" else ""
