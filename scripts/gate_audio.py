"""Speak the recording that conversions are measured on, with flite's voice slt: `python scripts/gate_audio.py`."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import soundfile

TARGET = Path(__file__).parents[1] / "src" / "personaplex" / "quality" / "gate.flac"
TEXT = "Hello! Can you tell me what time you open on Sunday?"


def main() -> None:
    """Write `TARGET`."""
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder) / "spoken.wav"
        subprocess.run(["flite", "-voice", "slt", "-t", TEXT, "-o", str(spoken)], check=True)
        pcm, rate = soundfile.read(spoken, dtype="int16")
    soundfile.write(TARGET, pcm, rate)


if __name__ == "__main__":
    main()
