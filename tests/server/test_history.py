"""What was said, kept: in memory and on disk, over restarts and kill -9, private, bounded, and gone when deleted."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert

from personaplex.errors import OutputError, UsageError
from personaplex.server.history import store
from personaplex.server.history.store import History
from personaplex.server.history.tables import SCHEMA, parse_place, turns

HOSTILE = "Robert'); DROP TABLE sessions;-- <script>alert(1)</script> \ud800 \0 \U0001f600"
SAFE = "Robert'); DROP TABLE sessions;-- <script>alert(1)</script> ? \ufffd \U0001f600"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else str(tmp_path / "new" / "history.sqlite")


async def test_what_was_said_is_listed_fetched_renamed_and_deleted(place: str | None) -> None:
    history = History(place)
    first = history.begin("chat", persona="sage", title="Robert'); DROP TABLE sessions;--")
    first.say("user", HOSTILE)
    first.say("assistant", "Hello.", persona="sage")
    second = history.begin("realtime")
    second.say("assistant", "Ready.")
    assert await first.settle()
    assert await second.settle()

    listed = await history.list()
    assert [session.id for session in listed] == [second.id, first.id]
    assert [session.id for session in await history.list(limit=1, offset=1)] == [first.id]
    assert [session.id for session in await history.list(kind="realtime")] == [second.id]
    found = await history.find(first.id)
    assert found is not None
    assert (found.kind, found.persona, found.n_turns, found.recorded) == ("chat", "sage", 2, 0)
    assert found.title == "Robert'); DROP TABLE sessions;--"
    said = await history.turns(first.id)
    assert [(turn.role, turn.text, turn.persona) for turn in said] == [
        ("user", SAFE, None),
        ("assistant", "Hello.", "sage"),
    ]
    assert said[0].at <= said[1].at <= time.time()

    assert await history.rename(first.id, "It's ours")
    assert not await history.rename("' OR 1=1 --", "everybody's")
    assert [session.title for session in await history.list()] == [None, "It's ours"]
    first.clear()
    first.become("aria")
    assert await first.settle()
    found = await history.find(first.id)
    assert found is not None and (found.n_turns, found.persona) == (0, "aria")

    assert await history.delete("' OR 1=1 --") == 0
    assert await history.delete(second.id) == 1
    assert await history.find(second.id) is None
    assert list(await history.turns(second.id)) == []
    assert await history.delete() == 1
    assert list(await history.list()) == []
    await history.close()


async def test_a_session_is_there_from_its_first_word_on_or_when_it_is_to_be(place: str | None) -> None:
    history = History(place)
    silent, kept = history.begin("moshi"), history.begin("chat")
    kept.keep()
    assert await kept.settle()
    assert await silent.settle()
    assert [session.id for session in await history.list()] == [kept.id]
    await history.close()


async def test_a_recording_comes_back_sample_for_sample(place: str | None) -> None:
    history = History(place)
    call = history.begin("respond")
    pcm = np.linspace(-1, 1, 70_000, dtype=np.float32)
    for piece in np.split(pcm, 70):
        call.hear(piece, -piece)
    assert await call.settle()
    found = await history.find(call.id)
    assert found is not None and found.recorded == pytest.approx(70_000 / 24_000)
    number, heard = 0, b""
    while (found_piece := await history.sound(call.id, number)) is not None:
        number, heard = found_piece[0], heard + found_piece[1]
    stereo = np.frombuffer(heard, "<i2").reshape(-1, 2)
    assert np.array_equal(stereo[:, 0], np.rint(pcm * 32767).astype("<i2"))
    assert np.array_equal(stereo[:, 1], -stereo[:, 0])
    await history.delete(call.id)
    assert await history.sound(call.id) is None
    await history.close()


async def test_it_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    place = str(tmp_path / "history.sqlite")
    first = History(place)
    session = first.begin("chat", persona="sage")
    session.say("user", "Remember me.")
    await first.close()  # with what waits

    second = History(place)
    assert [turn.text for turn in await second.turns(session.id)] == ["Remember me."]
    again = second.begin("chat", id=session.id)
    again.say("assistant", "I do.")
    assert await again.settle()
    assert [turn.text for turn in await second.turns(session.id)] == ["Remember me.", "I do."]
    assert [(one.id, one.persona) for one in await second.list()] == [(session.id, "sage")]
    await second.close()


WRITER = """
import asyncio, sys
from personaplex.server.history.store import History

async def main():
    session = History(sys.argv[1]).begin("chat", id="killed")
    n = 0
    while True:
        session.say("user", f"number {n}")
        assert await session.settle()
        print(n, flush=True)
        n += 1

asyncio.run(main())
"""


async def test_kill_9_takes_nothing_that_was_settled(tmp_path: Path) -> None:
    place = str(tmp_path / "history.sqlite")
    with subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        seen = -1
        while seen < 20:
            seen = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        seen = int((writer.stdout.read().split() or [str(seen)])[-1])
    history = History(place)
    said = [turn.text for turn in await history.turns("killed")]
    assert said == [f"number {n}" for n in range(len(said))]
    assert len(said) > seen
    await history.close()


async def test_its_files_are_the_owners_alone(tmp_path: Path) -> None:
    place = tmp_path / "history.sqlite"
    place.touch()
    place.chmod(0o644)
    before = os.umask(0)
    try:
        history = History(str(place))
        session = history.begin("chat")
        session.say("user", "secret")
        assert await session.settle()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("history.sqlite", "history.sqlite-wal", "history.sqlite-shm"), 0o600)
    await history.close()


async def test_what_is_deleted_is_in_no_file_any_more(tmp_path: Path) -> None:
    history = History(str(tmp_path / "history.sqlite"))
    other, session = history.begin("chat"), history.begin("chat")
    for n in range(20):  # so that what is deleted lies between what stays
        other.say("user", f"nothing special {n}")
        session.say("user", f"a very secret word: xylophone {n}")
    assert await session.settle()
    assert any(b"xylophone" in path.read_bytes() for path in tmp_path.iterdir())
    await history.delete(session.id)
    assert not any(b"xylophone" in path.read_bytes() for path in tmp_path.iterdir())
    assert len(await history.turns(other.id)) == 20
    await history.close()


async def test_retention_deletes_what_nobody_added_to(place: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(place, retention_days=1)
    old, new = history.begin("chat"), history.begin("chat")
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 1.5 * 86400)
        old.say("user", "old")
        assert await old.settle()
    new.say("user", "new")
    assert await new.settle()
    monkeypatch.setattr(history, "_pruned", 0.0)  # a minute has passed
    assert [session.id for session in await history.list()] == [new.id]
    assert list(await history.turns(old.id)) == []
    await history.close()


async def test_memory_is_bounded_in_sessions_and_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_SESSIONS_IN_MEMORY", 3)
    monkeypatch.setattr(store, "MOST_SOUND_IN_MEMORY", 3 * 48_000 * 4)
    history = History()
    for n in range(5):
        session = history.begin("respond", id=str(n))
        session.hear(np.zeros(48_000, np.float32), np.zeros(48_000, np.float32))
        session.hear(np.zeros(48_000, np.float32), np.zeros(48_000, np.float32))
        assert await session.settle()
    monkeypatch.setattr(history, "_pruned", 0.0)
    assert [(session.id, session.recorded) for session in await history.list()] == [("4", 4), ("3", 0), ("2", 0)]
    await history.close()


async def test_memory_is_bounded_in_text_however_soon_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_TEXT_IN_MEMORY", 100_000)
    history = History()
    session = history.begin("chat")
    for n in range(2000):
        session.say("user", f"{n:04d}" + "x" * 996)
    assert await session.settle()
    said = await history.turns(session.id)
    assert said[-1].text.startswith("1999") and sum(len(turn.text) for turn in said) < 1_000_000
    await history.close()


async def test_a_lasting_history_keeps_all_that_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "MOST_TEXT_IN_MEMORY", 100)
    monkeypatch.setattr(store, "_PRUNE_WRITES", 2)
    history = History(str(tmp_path / "history.sqlite"))
    session = history.begin("chat")
    for _ in range(10):
        session.say("user", "x" * 100)
    assert await session.settle()
    assert len(await history.turns(session.id)) == 10
    await history.close()


async def test_a_database_that_fails_is_told_once_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "history.sqlite"
    history = History(str(place))
    with sqlite3.connect(place) as other:
        other.execute("DROP TABLE turns")
    other.close()
    session = history.begin("chat")
    for _ in range(3):
        session.say("user", "a private thing")
    assert not await session.settle()
    assert [record.message for record in caplog.records] == [
        f"the history in {place} cannot be used: no such table: turns; name another place, or make it writable; "
        "conversations go on and are not kept"
    ]
    with pytest.raises(OutputError, match="no such table"):
        await history.turns(session.id)
    with pytest.raises(OutputError) as failed:
        await history._ask(lambda connection: connection.execute(insert(turns).values(text="a private thing")))
    assert "private" not in str(failed.value.__cause__)  # which may be logged
    with sqlite3.connect(place) as other:
        other.execute("CREATE TABLE turns (id INTEGER PRIMARY KEY, session, at, role, text, persona)")
    other.close()
    monkeypatch.setattr(history, "_failing", False)
    session.say("user", "a thing that is kept")
    assert await session.settle()
    with sqlite3.connect(place) as other:
        other.execute("ALTER TABLE turns RENAME TO gone")
    other.close()
    session.say("user", "a private thing")
    session.become("aria")  # this one is written
    assert not await session.settle()
    await history.close()
    session.say("user", "after the end")  # harmless
    assert not await session.settle()
    assert not any("private" in record.getMessage() for record in caplog.records)


async def test_more_than_can_wait_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "MOST_WAITING", 0)
    history = History()
    session = history.begin("chat")
    session.say("user", "too much")
    assert not await session.settle()
    assert list(await history.list()) == []
    assert "faster than it can be written" in caplog.text
    await history.close()


async def test_places_that_are_none_are_refused_in_a_line(tmp_path: Path) -> None:
    for place in ("nonsense://x", "://", "sqlite+aiosqlite:///x.sqlite", "postgresql+nodriver://u@h/d"):
        with pytest.raises(UsageError) as refused:
            History(place)
        assert "\n" not in str(refused.value)
    (tmp_path / "text").write_text("this is no database, however long it is read " * 100)
    for bad in (tmp_path, tmp_path / "text"):
        with pytest.raises(OutputError, match="history"):
            History(str(bad))
    assert parse_place("sqlite:////tmp/x").database == "/tmp/x"
    assert parse_place("~/x").database == str(Path("~/x").expanduser())


async def test_a_later_releases_history_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "history.sqlite"
    await History(str(place)).close()
    with sqlite3.connect(place) as other:
        other.execute("UPDATE personaplex_schema SET version = ?", (SCHEMA + 1,))
    other.close()
    with pytest.raises(OutputError, match=f"form {SCHEMA + 1}"):
        History(str(place))


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf")])
async def test_a_retention_of_no_time_is_a_mistake(days: float) -> None:
    with pytest.raises(UsageError, match="retention"):
        History(retention_days=days)
