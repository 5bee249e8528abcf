"""Microphone and speaker: what a live conversation needs of them, and the same made of two files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from personaplex.audio import audio_file
from personaplex.errors import DeviceError, PersonaPlexError
from personaplex.live.playout import Playout
from personaplex.units import FRAME_SAMPLES, FRAME_SECONDS


@dataclass(frozen=True)
class Captured:
    """A piece of time: what the microphone heard, `mic` [S], while the speaker played `far` [S]; 24 kHz float32.

    S is a multiple of 240 (10 ms), and at most a frame. `over`: the recording that stands for a microphone has ended,
    and this is the silence after it.
    """

    mic: np.ndarray = field(repr=False)
    far: np.ndarray = field(repr=False)
    over: bool = False


@dataclass(frozen=True)
class Lost:
    """The device is gone; nothing more is captured."""

    error: PersonaPlexError


@dataclass(frozen=True)
class Hint:
    """Something about the device that a person should know."""

    text: str


Put: TypeAlias = Callable[[Captured | Lost | Hint], None]
"""Where a device hands over what it captured, from a thread of its own."""


class Device(Protocol):
    """A microphone and a speaker with one clock."""

    @property
    def delay_seconds(self) -> float:
        """How long after a sample of `far` its echo can be in `mic`, at the least."""

    def start(self, playout: Playout, put: Put) -> None:
        """Begin to play and to capture. Raises DeviceError when that is not possible."""

    def proceed(self) -> None:
        """The conversation has answered all that it heard: a device without a clock of its own may go on."""

    def check(self) -> None:
        """Raise DeviceError if it has stopped."""

    def stop(self) -> None:
        """Play and capture no more. Raises OutputError when what was played cannot be kept."""


class FileDevice:
    """A recording that is listened to, and a file that is spoken into; silence follows the recording for ever.

    With `realtime` it keeps the time of a clock, otherwise that of the conversation: 80 ms pass when all was answered.
    """

    delay_seconds = 0.0

    def __init__(self, pcm: np.ndarray, output: Path | None, *, realtime: bool) -> None:
        self._pcm = pcm
        self._output = output
        self._realtime = realtime
        self._stack = ExitStack()
        self._stopping = threading.Event()
        self._may_go_on = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def start(self, playout: Playout, put: Put) -> None:
        """Begin."""
        write = self._stack.enter_context(audio_file(self._output)) if self._output else lambda _: None
        self._thread = threading.Thread(target=self._run, args=(playout, put, write), name="personaplex-files")
        self._thread.start()

    def proceed(self) -> None:
        """Let another 80 ms pass."""
        self._may_go_on.set()

    def check(self) -> None:
        """Raise DeviceError if its thread has ended."""
        if self._thread is not None and not self._thread.is_alive():
            raise DeviceError("the files that stand for microphone and speaker are not played any more")

    def stop(self) -> None:
        """Stop, and keep the output if all of it could be written."""
        self._stopping.set()
        self._may_go_on.set()
        if self._thread is not None:
            self._thread.join()
        if self._failed is None:
            self._stack.close()

    def _run(self, playout: Playout, put: Put, write: Callable[[np.ndarray], None]) -> None:
        began, at = time.monotonic(), 0
        try:
            while self._wait(began + (at // FRAME_SAMPLES + 1) * FRAME_SECONDS):
                mic = self._pcm[at : at + FRAME_SAMPLES]
                mic = np.pad(mic, (0, FRAME_SAMPLES - len(mic)))
                far = playout.pull(FRAME_SAMPLES)
                write(far)
                put(Captured(mic, far, over=at >= len(self._pcm)))
                at += FRAME_SAMPLES
        except OSError as error:
            self._fail(error, put)

    def _wait(self, due: float) -> bool:
        """Wait for the next 80 ms; whether there are any."""
        if self._realtime:
            self._stopping.wait(due - time.monotonic())
        else:
            self._may_go_on.wait()
            self._may_go_on.clear()
        return not self._stopping.is_set()

    def _fail(self, error: OSError, put: Put) -> None:
        self._failed = error
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)
        except PersonaPlexError as told:
            put(Lost(told))
