"""Who is speaking, told from levels, text and probabilities of speech. Values in, values out; no model in here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from personaplex.errors import UsageError

QUIET_RMS = 0.005
"""Below this a frame counts as silent (-46 dBFS): louder than the codec's silence, softer than a whisper."""

QUIET_FRAMES = 15
"""Quiet frames (1.2 s) after which the agent's turn is over: longer than its pauses between sentences."""

CHUNK_SECONDS = 512 / 16_000
"""What one probability of speech stands for."""


class Turn(NamedTuple):
    """One speaker's turn by the frame: it begins with a frame that sounds, and is over after `QUIET_FRAMES` others.

    `quiet` counts the frames since one last sounded.
    """

    speaking: bool = False
    quiet: int = 0

    def after(self, sounds: bool) -> Turn:
        """The turn after a frame that `sounds` (is loud, or says a word), or does not."""
        if sounds:
            return Turn(True, 0)
        return Turn(self.speaking and self.quiet + 1 < QUIET_FRAMES, self.quiet + 1)


@dataclass(frozen=True)
class VoiceActivity:
    """When the user counts as speaking: `onset` and `offset` are probabilities, with nothing decided in between.

    Speech must last `speech_seconds` to begin a turn, silence `silence_seconds` to end it.
    """

    onset: float = 0.5
    offset: float = 0.35
    speech_seconds: float = 0.25
    silence_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.offset <= self.onset <= 1:
            raise UsageError(f"onset {self.onset} and offset {self.offset}: expected 0 <= offset <= onset <= 1")
        for name in ("speech_seconds", "silence_seconds"):
            if not 0 <= getattr(self, name) < 1e6:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be 0 or more")


class UserTurn(NamedTuple):
    """The user's turn by probabilities of speech; `run` counts those that speak for a change."""

    speaking: bool = False
    run: int = 0

    def after(self, probability: float, rule: VoiceActivity) -> UserTurn:
        """The turn after another 32 ms."""
        changes = probability < rule.offset if self.speaking else probability >= rule.onset
        stays = probability >= rule.onset if self.speaking else probability < rule.offset
        run = self.run + 1 if changes else 0 if stays else self.run
        seconds = rule.silence_seconds if self.speaking else rule.speech_seconds
        if run >= max(1, math.ceil(seconds / CHUNK_SECONDS)):
            return UserTurn(not self.speaking, 0)
        return UserTurn(self.speaking, run)
