"""The history: conversations written down as they happen, listed, fetched, exported, deleted.

One thread of its own does all of it, one thing after the other, so nobody's event loop waits for a disk and nothing
overtakes what was said before it. A failure (a full disk) is logged once, and conversations go on without being kept.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection, Engine, Row, Select, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from personaplex.audio import pcm16
from personaplex.errors import OutputError, UsageError
from personaplex.server.history.record import Kind, Session, Speaker, Turn
from personaplex.server.history.tables import failure, open_tables, parse_place, sessions, sounds, turns
from personaplex.units import SAMPLE_RATE

T = TypeVar("T")

MOST_SESSIONS_IN_MEMORY = 1000
MOST_SOUND_IN_MEMORY = 256 << 20
"""Bytes: some 45 minutes. Beyond either the oldest go; a database holds what its disk holds."""

MOST_TEXT_IN_MEMORY = 64 << 20
"""Characters: some months of talk. Beyond that the oldest turns go."""

MOST_WAITING = 10_000
"""Things to write down that may wait for a slow disk; what comes then is not kept."""

PIECE_SECONDS = 2.0
"""Sound is written in such pieces, so that is what the end of the process may take with it."""

_PRUNE_SECONDS = 60.0
_PRUNE_WRITES = 500
"""However soon they come."""

_log = logging.getLogger("personaplex.server")


class Transcript:
    """A conversation that is being written down. Any thread may call; only `settle` waits.

    Its session is in the history from its first turn or sound on, or from `keep` on.
    """

    def __init__(self, history: History, session: Session) -> None:
        self._history = history
        self._session = session
        self._sound: list[np.ndarray] = []
        self._n_samples = 0
        self._last: Future[Any] | None = None
        self._lost = False

    @property
    def id(self) -> str:
        """The session's id in the history."""
        return self._session.id

    def keep(self) -> None:
        """Have the session in the history although nothing was said yet."""
        self._do(lambda _: None)

    def say(self, role: Speaker, text: str, *, persona: str | None = None, at: float | None = None) -> None:
        """Write down what `role` said, at a time in seconds since 1970 (default now)."""
        turn = {"at": time.time() if at is None else at, "role": role, "text": _storable(text), "persona": persona}
        self._do(lambda connection: connection.execute(insert(turns).values(session=self.id, **turn)))

    def hear(self, agent: np.ndarray, user: np.ndarray) -> None:
        """Keep what was audible, [S] each, of the same time at 24 kHz: where recording was asked for."""
        self._sound.append(pcm16(np.stack([agent, user], axis=1)))
        self._n_samples += len(agent)
        if self._n_samples >= PIECE_SECONDS * SAMPLE_RATE:
            self.flush()

    def flush(self) -> None:
        """Have what was heard up to now written, although it is no whole piece."""
        if self._sound:
            pcm, n_samples = np.concatenate(self._sound).tobytes(), self._n_samples
            self._sound, self._n_samples = [], 0
            row = {"session": self.id, "n_samples": n_samples, "pcm": pcm}
            self._do(lambda connection: connection.execute(insert(sounds).values(**row)))

    def become(self, persona: str) -> None:
        """Note that the agent is somebody else from now on."""
        change = update(sessions).where(sessions.c.id == self.id).values(persona=persona)
        self._session = Session(**{**vars(self._session), "persona": persona})
        self._do(lambda connection: connection.execute(change), creates=False)

    def clear(self) -> None:
        """Forget what was said so far, and heard; the session stays."""
        self._sound, self._n_samples = [], 0
        self._do(lambda connection: _clear(connection, self.id), creates=False)

    def _do(self, call: Callable[[Connection], object], *, creates: bool = True) -> None:
        session = self._session if creates else None
        written = self._history.write(lambda connection: _touched(connection, session, call))
        if written is None:
            self._lost = True
            return
        written.add_done_callback(self._check)
        self._last = written

    def _check(self, written: Future[object]) -> None:
        if written.exception() is not None:
            self._lost = True

    async def settle(self) -> bool:
        """Wait until all of it is written; whether all since the last time is kept. Failures were logged already."""
        self.flush()
        if self._last is not None:
            with suppress(Exception):  # told by `_check`
                await asyncio.shield(asyncio.wrap_future(self._last))  # who stops waiting does not stop the writing
        lost, self._lost = self._lost, False
        return not lost


class History:
    """Conversations by id. `place`: None for memory, a SQLite file, or a SQLAlchemy URL.

    Sessions that nobody has added to for `retention_days` are deleted. Raises OutputError for a place that cannot be
    written, UsageError for one that is none.
    """

    def __init__(self, place: str | None = None, retention_days: float | None = None) -> None:
        if retention_days is not None and not 0 < retention_days < math.inf:
            raise UsageError(f"retention days is {retention_days}; it must be more than 0")
        self._url = parse_place(place)
        self.is_lasting = place is not None
        self._retention = None if retention_days is None else 86400 * retention_days
        self._pool = ThreadPoolExecutor(1, "personaplex-history")
        self._lock = threading.Lock()
        self._waiting = 0
        self._failing = False
        self._pruned = 0.0
        self._n_since = 0
        try:
            self._engine: Engine = self._pool.submit(open_tables, self._url).result()
        except BaseException:
            self._pool.shutdown()
            raise

    def begin(
        self, kind: Kind, *, persona: str | None = None, title: str | None = None, id: str | None = None
    ) -> Transcript:
        """Begin to write a conversation down, or go on with the one called `id`. Never waits."""
        now = time.time()
        title = None if title is None else _storable(title)
        return Transcript(self, Session(id or uuid.uuid4().hex, kind, persona, title, now, now))

    def write(self, call: Callable[[Connection], object]) -> Future[object] | None:
        """Have something written; the future raises OutputError. None when too much waits: it is not kept."""
        with self._lock:
            if self._waiting >= MOST_WAITING:
                self._tell("what is said comes faster than it can be written; some of it is not kept")
                return None
            self._waiting += 1

        def task() -> object:
            try:
                done = self._transact(call)
            except OutputError as error:
                self._tell(str(error))
                raise
            finally:
                with self._lock:
                    self._waiting -= 1
            self._failing = False
            return done

        try:
            return self._pool.submit(task)
        except RuntimeError:  # it was closed
            with self._lock:
                self._waiting -= 1
            return None

    def _tell(self, what: str) -> None:
        if not self._failing:
            self._failing = True
            _log.error("%s; conversations go on and are not kept", what)

    def _transact(self, call: Callable[[Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                self._n_since += 1
                is_due = time.monotonic() >= self._pruned + _PRUNE_SECONDS or self._n_since > _PRUNE_WRITES
                if is_due or not self._pruned:
                    self._pruned, self._n_since = time.monotonic(), 0
                    self._prune(connection)
                return call(connection)
        except SQLAlchemyError as error:
            raise failure(self._url, error) from error
        except (OverflowError, ValueError) as error:  # drivers' own, for what no column can hold
            raise OutputError(f"the history cannot hold this: {error}") from error

    async def _ask(self, call: Callable[[Connection], T]) -> T:
        return await asyncio.wrap_future(self._pool.submit(self._transact, call))

    async def list(self, limit: int = 50, offset: int = 0, kind: Kind | None = None) -> Sequence[Session]:
        """Sessions, the latest first. Raises OutputError, as all that follow."""
        query = _with_counts().order_by(sessions.c.updated.desc(), sessions.c.id).limit(limit).offset(offset)
        if kind is not None:
            query = query.where(sessions.c.kind == kind)
        return await self._ask(lambda connection: [_session(row) for row in connection.execute(query)])

    async def find(self, id: str) -> Session | None:
        """The session `id`; None if there is none."""
        query = _with_counts().where(sessions.c.id == id)
        found = await self._ask(lambda connection: connection.execute(query).first())
        return None if found is None else _session(found)

    async def turns(self, id: str) -> Sequence[Turn]:
        """What was said in it, in order."""
        query = select(turns.c.at, turns.c.role, turns.c.text, turns.c.persona)
        query = query.where(turns.c.session == id).order_by(turns.c.id)
        return await self._ask(lambda connection: [Turn(*row) for row in connection.execute(query)])

    async def sound(self, id: str, after: int = 0) -> tuple[int, bytes] | None:
        """The next piece of its recording after the piece `after`: its number, and 16-bit samples, agent left."""
        query = select(sounds.c.id, sounds.c.pcm).where(sounds.c.session == id, sounds.c.id > after)
        query = query.order_by(sounds.c.id).limit(1)
        found = await self._ask(lambda connection: connection.execute(query).first())
        return None if found is None else (found[0], found[1])

    async def rename(self, id: str, title: str | None) -> bool:
        """Give it another title; whether there is such a session."""
        title = None if title is None else _storable(title)
        change = update(sessions).where(sessions.c.id == id).values(title=title)
        return await self._ask(lambda connection: connection.execute(change).rowcount > 0)

    async def delete(self, id: str | None = None) -> int:
        """Delete a session, or all of them, for good; how many there were."""

        def remove(connection: Connection) -> int:
            ids = select(sessions.c.id)
            return _delete(connection, ids if id is None else ids.where(sessions.c.id == id))

        n = await self._ask(remove)
        await asyncio.wrap_future(self._pool.submit(self._shred))
        return n

    def _shred(self) -> None:
        """Take what was deleted out of SQLite's log as well."""
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def _prune(self, connection: Connection) -> None:
        if self._retention is not None:
            _delete(connection, select(sessions.c.id).where(sessions.c.updated < time.time() - self._retention))
        if self.is_lasting:
            return
        newest = select(sessions.c.id).order_by(sessions.c.updated.desc()).limit(MOST_SESSIONS_IN_MEMORY)
        _delete(connection, select(sessions.c.id).where(sessions.c.id.not_in(newest)))
        while (connection.scalar(select(func.sum(sounds.c.n_samples))) or 0) * 4 > MOST_SOUND_IN_MEMORY:
            oldest = select(sounds.c.session).order_by(sounds.c.id).limit(1).scalar_subquery()
            connection.execute(delete(sounds).where(sounds.c.session == oldest))
        while (connection.scalar(select(func.sum(func.length(turns.c.text)))) or 0) > MOST_TEXT_IN_MEMORY:
            first = select(turns.c.id).order_by(turns.c.id).limit(100)
            connection.execute(delete(turns).where(turns.c.id.in_(first)))

    async def close(self) -> None:
        """Write what waits, and end."""
        await asyncio.wrap_future(self._pool.submit(self._engine.dispose))
        self._pool.shutdown(wait=False)


def _touched(connection: Connection, session: Session | None, call: Callable[[Connection], object]) -> object:
    """`call`, in a session that is there and of now."""
    if session is not None:
        now = time.time()
        changed = connection.execute(update(sessions).where(sessions.c.id == session.id).values(updated=now))
        if not changed.rowcount:
            row = {name: getattr(session, name) for name in ("id", "kind", "persona", "title", "created")}
            connection.execute(insert(sessions).values(updated=now, **row))
    return call(connection)


def _storable(text: str) -> str:
    """What every database takes: no halves of characters, no zero bytes."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _clear(connection: Connection, id: str) -> None:
    for table in (turns, sounds):
        connection.execute(delete(table).where(table.c.session == id))


def _delete(connection: Connection, ids: Select[Any]) -> int:
    for table in (turns, sounds):
        connection.execute(delete(table).where(table.c.session.in_(ids)))
    return connection.execute(delete(sessions).where(sessions.c.id.in_(ids))).rowcount


def _with_counts() -> Select[Any]:
    n_turns = select(func.count()).where(turns.c.session == sessions.c.id).scalar_subquery()
    n_samples = select(func.coalesce(func.sum(sounds.c.n_samples), 0)).where(sounds.c.session == sessions.c.id)
    c = sessions.c
    return select(
        c.id,
        c.kind,
        c.persona,
        c.title,
        c.created,
        c.updated,
        n_turns.label("n_turns"),
        (n_samples.scalar_subquery() / float(SAMPLE_RATE)).label("recorded"),
    )


def _session(row: Row[Any]) -> Session:
    return Session(**row._asdict())
