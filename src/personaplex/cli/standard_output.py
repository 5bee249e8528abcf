"""Sound on standard output: a WAV file whose length nobody knows yet, for players and pipes."""

from __future__ import annotations

import struct
import sys

from personaplex.errors import UsageError
from personaplex.units import SAMPLE_RATE


def check_stdout() -> None:
    """Raise UsageError when standard output is a terminal: sound is nothing to read."""
    if sys.stdout is None or sys.stdout.isatty():
        raise UsageError("--output - writes audio to stdout, which is a terminal; pipe it into a player or a file")


def wav_header(n_samples: int | None) -> bytes:
    """A 16-bit mono WAV header; a stream of unknown length gets the sizes that players take for endless."""
    data = 0xFFFF_FFFF if n_samples is None else 2 * n_samples
    riff = 0xFFFF_FFFF if n_samples is None else 36 + data
    fmt = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", data)


def write_stdout(data: bytes) -> None:
    """Write and hand over at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
