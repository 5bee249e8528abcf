"""Where the history lies and what its tables are: SQLite in memory or in a file, or another SQLAlchemy URL.

A file is made for its owner alone (mode 0600, and SQLite gives its -wal and -shm files the same), in WAL mode: what
was committed survives the end of the process at any moment. `synchronous=NORMAL` means that a power cut, and nothing
less, may take the last moments with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from personaplex.errors import OutputError, UsageError

SCHEMA = 1
"""Of the tables below; a file that a later release wrote is refused, not guessed at."""

metadata = MetaData()

schema = Table("personaplex_schema", metadata, Column("version", Integer, nullable=False))

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("persona", String(200)),
    Column("title", String(200)),
    Column("created", Float(53), nullable=False),
    Column("updated", Float(53), nullable=False, index=True),
)

turns = Table(
    "turns",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("session", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("at", Float(53), nullable=False),
    Column("role", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("persona", String(200)),
)

sounds = Table(
    "sounds",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("session", ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("n_samples", Integer, nullable=False),
    Column("pcm", LargeBinary, nullable=False),  # 16 bit, 24 kHz, agent left and user right
)


def parse_place(place: str | None) -> URL:
    """A SQLAlchemy URL, or the name of a SQLite file; None for memory. Raises UsageError for what is neither."""
    if place is None:
        return make_url("sqlite://")
    if "://" not in place:
        return URL.create("sqlite", database=str(Path(place).expanduser()))
    try:
        url = make_url(place)
        is_async = url.get_dialect().is_async
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError(
            "the history's place is no SQLAlchemy URL that can be used; expected a file's name, sqlite:////FILE, or "
            "one such as postgresql://USER@HOST/NAME"
        ) from error
    except ImportError as error:
        raise UsageError(f"the history's place needs a driver that is not installed: {error}") from error
    if is_async:
        raise UsageError(f"the history is written from a thread: {url.drivername} is for event loops; take another")
    return url


def open_tables(url: URL) -> Engine:
    """Connect, and make the tables that are not there yet. Raises OutputError, UsageError where a driver is missing."""
    is_sqlite = url.get_backend_name() == "sqlite"
    is_file = is_sqlite and url.database not in (None, "", ":memory:")
    if is_file:
        _make_private(Path(str(url.database)))
    options: dict[str, Any] = {} if is_file or not is_sqlite else {"poolclass": StaticPool}
    if is_sqlite:
        options["connect_args"] = {"check_same_thread": False, "timeout": 10}
    try:
        # What people say is a parameter: it must not get into an error's text, and from there into the log.
        engine = create_engine(url, hide_parameters=True, **options)
    except ImportError as error:
        raise UsageError(f"the history's place needs a driver that is not installed: {error}") from error
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            version = connection.scalar(select(schema.c.version))
            if version is None:
                connection.execute(insert(schema).values(version=SCHEMA))
    except SQLAlchemyError as error:
        engine.dispose()
        raise failure(url, error) from error
    if version not in (None, SCHEMA):
        engine.dispose()
        raise OutputError(
            f"the history in {_shown(url)} has form {version}, and this release knows form {SCHEMA}; "
            "name another place, or take the release that wrote it"
        )
    return engine


def failure(url: URL, error: SQLAlchemyError) -> OutputError:
    """What is told when the database fails, without a word of what was to be kept."""
    cause = getattr(error, "orig", None)
    why = str(cause).splitlines()[0] if cause is not None and str(cause) else type(error).__name__
    return OutputError(f"the history in {_shown(url)} cannot be used: {why}; name another place, or make it writable")


def _shown(url: URL) -> str:
    if url.get_backend_name() != "sqlite":
        return url.render_as_string(hide_password=True)
    return str(url.database or "memory")


def _make_private(path: Path) -> None:
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise OutputError(f"the history cannot be kept in {path}: {error.strerror}; name another place") from error


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
