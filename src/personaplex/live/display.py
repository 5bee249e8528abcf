"""What a person sees while talking: a small full-screen display, or plain lines."""

from __future__ import annotations

import math
import os
import shutil
import textwrap
import unicodedata
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TextIO

from personaplex.live.command import HELP
from personaplex.live.floor import Holder
from personaplex.units import FRAME_SECONDS

FRAME_MS = round(1000 * FRAME_SECONDS)
_FLOOR_DB = -60.0
_METER_CELLS = 30
_KEPT_LINES = 200


@dataclass(frozen=True)
class Status:
    """The state of the line, every 80 ms: levels are root mean squares, times are in seconds and milliseconds.

    `depth` frames wait in the playout buffer; it has had `gaps`; `dropped` frames were never heard, by either side.
    """

    seconds: float
    user_level: float
    agent_level: float
    holder: Holder
    step_ms: float | None
    depth: int
    gaps: int
    dropped: int
    is_ready: bool


class Display(Protocol):
    """Shows; called in the thread of the loop."""

    def show(self, status: Status) -> None:
        """The state of the line."""

    def say(self, text: str) -> None:
        """Text that the agent is saying."""

    def turn(self, *, agent: bool) -> None:
        """The agent's turn has begun, or ended."""

    def note(self, text: str) -> None:
        """A line for the person."""


def printable(text: str) -> str:
    """`text` without what would move a cursor or ring a bell."""
    return "".join(c if c == " " or unicodedata.category(c)[0] not in "CZ" else " " for c in text)


class Lines:
    """Plain: the agent's turns as lines in `transcript`, everything else in `notes` (None: nowhere)."""

    def __init__(self, transcript: TextIO, notes: TextIO | None) -> None:
        self._transcript = transcript
        self._notes = notes
        self._in_line = False

    def show(self, status: Status) -> None:
        """Nothing: lines do not move."""

    def say(self, text: str) -> None:
        """Word by word, as it speaks."""
        text = printable(text)
        if not self._in_line:
            text = "agent: " + text.lstrip()
        self._in_line = True
        self._transcript.write(text)
        self._transcript.flush()

    def turn(self, *, agent: bool) -> None:  # noqa: ARG002
        """Begin a new line."""
        self.end()

    def note(self, text: str) -> None:
        """A line of its own."""
        self.end()
        if self._notes is not None:
            self._notes.write(f"{printable(text)}\n")
            self._notes.flush()

    def end(self) -> None:
        """End the line that is being written."""
        if self._in_line:
            self._in_line = False
            self._transcript.write("\n")
            self._transcript.flush()


class Screen:
    """Full-screen, on a terminal: levels, captions, the step time against 80 ms, and the line that is being typed.

    Enter and leave it as a context: the terminal is as it was afterwards.
    """

    def __init__(self, terminal: TextIO, title: str, typed: Callable[[], str]) -> None:
        self._terminal = terminal
        self._title = title
        self._typed = typed
        self._lines: deque[tuple[str, str]] = deque(maxlen=_KEPT_LINES)
        self._in_turn = False
        self._bold, self._dim, self._plain = (
            ("", "", "") if os.environ.get("NO_COLOR") else ("\033[1m", "\033[2m", "\033[0m")
        )

    def __enter__(self) -> Screen:
        self._write("\033[?1049h\033[?25l\033[2J")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that is gone
            self._write("\033[?25h\033[?1049l")

    def say(self, text: str) -> None:
        """Add to the caption."""
        text = printable(text)
        if self._in_turn and self._lines and self._lines[-1][0] == "agent":
            self._lines[-1] = ("agent", self._lines[-1][1] + text)
        else:
            self._lines.append(("agent", text.lstrip()))
        self._in_turn = True

    def turn(self, *, agent: bool) -> None:  # noqa: ARG002
        """The next text is a new caption."""
        self._in_turn = False

    def note(self, text: str) -> None:
        """A line among the captions."""
        self._lines.append(("", printable(text)))

    def transcript(self) -> list[str]:
        """What was shown, for when the screen is gone."""
        return [f"{who}: {text}" if who else text for who, text in self._lines]

    def show(self, status: Status) -> None:
        """Draw everything anew, in one write."""
        width, height = shutil.get_terminal_size()
        minutes, seconds = divmod(int(status.seconds), 60)
        state = status.holder.value if status.is_ready else "reading voice and role"
        step = "step --" if status.step_ms is None else f"step {status.step_ms:.0f} ms of {FRAME_MS}"
        late = status.step_ms is not None and status.step_ms > FRAME_MS
        head = [
            f"{self._bold}{clip(f'{self._title}  {minutes}:{seconds:02}  {state}', width)}{self._plain}",
            clip(f"you    {meter(status.user_level)}", width),
            clip(f"agent  {meter(status.agent_level)}", width),
            clip(
                f"{step}{' TOO SLOW' if late else ''}  buffer {status.depth * FRAME_MS} ms  gaps {status.gaps}  "
                f"dropped frames {status.dropped}",
                width,
            ),
            "",
        ]
        typed = printable(self._typed())[-max(1, width - 3) :]  # the end of a long line is what is being typed
        foot = ["", clip(f"> {typed}", width), f"{self._dim}{clip(HELP, width)}{self._plain}"]
        room = max(1, height - len(head) - len(foot))
        rows = [row for who, text in self._lines for row in self._wrapped(who, text, width)][-room:]
        rows += [""] * (room - len(rows))
        # In the smallest window there is still the line that is being typed.
        lines = [*[*head, *rows][: max(1, height - len(foot))], *foot][: max(3, height)]
        self._write("\033[H" + "\r\n".join(f"{line}\033[K" for line in lines) + "\033[J")

    def _wrapped(self, who: str, text: str, width: int) -> list[str]:
        # A character may be two cells wide; half of the width is then right, and all of it wraps in the terminal.
        wide = any(unicodedata.east_asian_width(c) in "WF" for c in text)
        rows = textwrap.wrap(text, max(1, (width - 1) // (2 if wide else 1))) or [""]
        return rows if who else [f"{self._dim}{row}{self._plain}" for row in rows]

    def _write(self, text: str) -> None:
        self._terminal.write(text)
        self._terminal.flush()


def meter(level: float) -> str:
    """A level (root mean square, 1 is full scale) as a bar and in decibels."""
    db = max(_FLOOR_DB, 20 * math.log10(max(level, 1e-9)))
    cells = min(_METER_CELLS, round(_METER_CELLS * (1 - db / _FLOOR_DB)))
    return f"[{'#' * cells}{'.' * (_METER_CELLS - cells)}] {db:4.0f} dB"


def clip(text: str, width: int) -> str:
    """As much of `text` as fits a row."""
    return text[: max(0, width - 1)]
