"""The full-screen display in windows of any size."""

from __future__ import annotations

import io

import pytest

from personaplex.live.display import Screen, Status
from personaplex.live.floor import Holder

STATUS = Status(1.0, 0.1, 0.1, Holder.BOTH, 20.0, 3, 0, 0, is_ready=True)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 10), (30, 6), (20, 4)])
def test_what_is_being_typed_is_seen_in_any_window(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setenv("NO_COLOR", "1")
    terminal, typed = io.StringIO(), "!say " + "word " * 40 + "the end"
    screen = Screen(terminal, "a title", lambda: typed)
    for i in range(30):
        screen.note(f"note {i}")
    screen.show(STATUS)
    rows = terminal.getvalue().removeprefix("\033[H").removesuffix("\033[J").replace("\033[K", "").split("\r\n")
    assert len(rows) == height and all(len(row) < width for row in rows)
    assert rows[0].startswith("a title") and rows[-2].startswith("> ") and rows[-2].endswith("word the end")
    assert (height < 10) or rows[-4] == "note 29"
