"""Lines that are typed while talking, and putting the terminal back as it was."""

from __future__ import annotations

import codecs
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from personaplex.live.display import printable

QUIT = "!quit"
_POLL_SECONDS = 0.1
_ERASE, _ERASE_LINE, _END = "\b\x7f", "\x15", "\x04"


class Keyboard:
    """Reads `fd` in a thread and hands over whole lines, without their end, by `put`.

    On a terminal, the end of input is `!quit`. With `raw` the terminal neither echoes nor edits: `typed` is the line so
    far, for a display to show. Enter and leave it as a context.
    """

    def __init__(self, fd: int, put: Callable[[str], None], *, raw: bool) -> None:
        self._fd = fd
        self._put = put
        self._raw = raw
        self._typed = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stopping = threading.Event()
        self._saved: list[object] | None = None

    @property
    def typed(self) -> str:
        """What was typed of a line that is not whole yet."""
        return self._typed

    def __enter__(self) -> Keyboard:
        if self._raw:
            self._quieten()
        self._thread = threading.Thread(target=self._run, name="personaplex-keyboard", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._saved is not None:
            import termios

            with suppress(termios.error):  # a terminal that is gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]

    def _quieten(self) -> None:
        """Key by key, unseen; Ctrl-C still interrupts, but Ctrl-Z would leave a silent line behind."""
        import termios

        self._saved = list(termios.tcgetattr(self._fd))
        quiet = termios.tcgetattr(self._fd)
        quiet[3] &= ~(termios.ICANON | termios.ECHO)
        quiet[6][termios.VMIN], quiet[6][termios.VTIME], quiet[6][termios.VSUSP] = 1, 0, b"\x00"
        termios.tcsetattr(self._fd, termios.TCSADRAIN, quiet)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not select.select([self._fd], [], [], _POLL_SECONDS)[0]:
                    continue
                data = os.read(self._fd, 1024)
            except (OSError, ValueError):  # the terminal is gone
                data = b""
            if not data:
                if os.isatty(self._fd) or self._raw:
                    self._put(QUIT)
                return
            for character in self._decoder.decode(data):
                self._press(character)

    def _press(self, character: str) -> None:
        if character in "\r\n":
            line, self._typed = self._typed, ""
            self._put(line)
        elif character in _ERASE:
            self._typed = self._typed[:-1]
        elif character == _ERASE_LINE:
            self._typed = ""
        elif character == _END and not self._typed:
            self._put(QUIT)
        else:
            self._typed += printable(character)


def standard_input() -> int | None:
    """The descriptor of standard input, or None where there is none to read."""
    try:
        return sys.stdin.fileno() if sys.stdin is not None else None
    except (OSError, ValueError):
        return None
