"""A sound card for other people's programs: ALSA's default device, whose microphone and speaker are two pipes.

ALSA's null device takes and gives sound as fast as a program likes; behind pipes that are filled and emptied in time it
keeps a clock, as a real one does.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

_PIPE_BYTES = 8192
_RATE = 24_000
_BLOCK = 1920
_SET_PIPE_SIZE = 1031  # Linux's F_SETPIPE_SZ, which `fcntl` names only since Python 3.10 and not everywhere

_CONFIGURATION = """
</usr/share/alsa/alsa.conf>
pcm.!default {{
    type asym
    playback.pcm "speaker"
    capture.pcm "microphone"
}}
pcm.speaker {{
    type file
    slave.pcm "null"
    file "{folder}/speaker"
    format "raw"
}}
pcm.microphone {{
    type file
    slave.pcm "null"
    file "/dev/null"
    infile "{folder}/microphone"
    format "raw"
}}
"""


class PipeCard:
    """`said` [S] float32 at 24 kHz is what its microphone hears, then silence; `heard` what its speaker was given."""

    def __init__(self, folder: Path, said: np.ndarray) -> None:
        folder.mkdir()
        (folder / "asound.conf").write_text(_CONFIGURATION.format(folder=folder))
        self.environment = {"ALSA_CONFIG_PATH": str(folder / "asound.conf")}
        self._said = said.astype(np.float32)
        self._heard: list[bytes] = []
        self._stop = threading.Event()
        self._pipes = []
        for name in ("microphone", "speaker"):
            os.mkfifo(folder / name)
            # Open at both ends: a program that opens one waits for nobody, and none ever ends.
            self._pipes.append(os.open(folder / name, os.O_RDWR | os.O_NONBLOCK))
            fcntl.fcntl(self._pipes[-1], _SET_PIPE_SIZE, _PIPE_BYTES)
        self._clock = threading.Thread(target=self._run, name="pipe-card")
        self._clock.start()

    def _run(self) -> None:
        microphone, speaker = self._pipes
        at, began = 0, time.monotonic()
        silence = np.zeros(_BLOCK, np.float32).tobytes()
        sound = self._said.tobytes()
        tick = 0
        while not self._stop.wait(max(began + tick * _BLOCK / _RATE - time.monotonic(), 0)):
            tick += 1
            with suppress(BlockingIOError):  # nobody records
                at += os.write(microphone, sound[at : at + _BLOCK * 4] or silence)
            with suppress(BlockingIOError):  # nobody plays
                self._heard.append(os.read(speaker, _BLOCK * 4))

    @property
    def heard(self) -> np.ndarray:
        whole = b"".join(self._heard)
        return np.frombuffer(whole[: len(whole) // 4 * 4], np.float32)

    def close(self) -> None:
        self._stop.set()
        self._clock.join()
        for pipe in self._pipes:
            os.close(pipe)
