"""Taking the agent's own voice out of the microphone's sound, so that it does not answer itself.

`far` is what the speaker was given while `mic` was recorded (`Captured`), so both are aligned with what is audible:
gaps and cut-off speech are in it, the playout buffer's delay is not.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import numpy as np

from personaplex.audio import pcm16, rms
from personaplex.errors import UsageError
from personaplex.turns import QUIET_RMS
from personaplex.units import SAMPLE_RATE

EchoChoice: TypeAlias = Literal["cancel", "gate", "off"]

BLOCK = SAMPLE_RATE // 100
"""Samples (10 ms) that WebRTC's audio processing takes at a time."""

HOLD_SECONDS = 0.25
"""How long the gate stays shut after the agent was audible: a room's reverberation."""


class Echo(Protocol):
    """Takes a piece of time, gives the user's part of it."""

    def clean(self, mic: np.ndarray, far: np.ndarray) -> np.ndarray:
        """Samples [S] each (S a multiple of 240) -> what of `mic` is not the speaker's, [S]."""


class Untouched:
    """For headphones: nothing of the speaker reaches the microphone."""

    def clean(self, mic: np.ndarray, far: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """All of `mic`."""
        return mic


class Gate:
    """A mute gate: silence as long as the agent is audible. The user cannot interrupt."""

    def __init__(self, delay_seconds: float) -> None:
        self._hold = round((delay_seconds + HOLD_SECONDS) * SAMPLE_RATE)
        self._shut_for = 0

    def clean(self, mic: np.ndarray, far: np.ndarray) -> np.ndarray:
        """`mic`, or silence."""
        if rms(far) >= QUIET_RMS:
            self._shut_for = self._hold + len(far)
        shut, self._shut_for = self._shut_for > 0, max(0, self._shut_for - len(far))
        return np.zeros_like(mic) if shut else mic


class Canceller:
    """WebRTC's echo canceller (AEC3), from the `livekit` package. It learns the way from speaker to microphone."""

    def __init__(self, delay_seconds: float) -> None:
        try:
            from livekit import rtc
        except ImportError as error:
            raise UsageError(
                "echo cancellation needs the livekit package: pip install 'personaplex-mlx[talk]'; "
                "or use --headphones, or --echo gate"
            ) from error
        self._frame = rtc.AudioFrame
        self._apm = rtc.AudioProcessingModule(echo_cancellation=True, high_pass_filter=True)
        self._delay_ms = round(1000 * delay_seconds)

    def clean(self, mic: np.ndarray, far: np.ndarray) -> np.ndarray:
        """The same samples without what is heard of `far`."""
        cleaned = np.empty_like(mic)
        for start in range(0, len(mic), BLOCK):
            part = slice(start, start + BLOCK)
            near, played = self._block(mic[part]), self._block(far[part])
            self._apm.process_reverse_stream(played)
            self._apm.set_stream_delay_ms(self._delay_ms)
            self._apm.process_stream(near)
            cleaned[part] = np.frombuffer(near.data, np.int16).astype(np.float32) / 32768
        return cleaned

    def _block(self, pcm: np.ndarray) -> rtc.AudioFrame:  # type: ignore[name-defined] # noqa: F821 - an extra
        return self._frame(pcm16(pcm).tobytes(), SAMPLE_RATE, 1, BLOCK)


def echo_for(choice: EchoChoice, delay_seconds: float) -> Echo:
    """What takes the echo out. Raises UsageError when the canceller's library is not installed."""
    if choice == "cancel":
        return Canceller(delay_seconds)
    return Gate(delay_seconds) if choice == "gate" else Untouched()
