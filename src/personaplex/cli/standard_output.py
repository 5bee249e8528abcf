"""Sound on standard output: a WAV file whose length nobody knows yet, for players and pipes."""

from __future__ import annotations

import sys

from personaplex.errors import UsageError


def check_stdout() -> None:
    """Raise UsageError when standard output is a terminal: sound is nothing to read."""
    if sys.stdout is None or sys.stdout.isatty():
        raise UsageError("--output - writes audio to stdout, which is a terminal; pipe it into a player or a file")


def write_stdout(data: bytes) -> None:
    """Write and hand over at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
