"""What an engine keeps and how long it waits, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from personaplex.engine.generator import check_kv_bits
from personaplex.errors import UsageError
from personaplex.turns import VoiceActivity
from personaplex.units import FRAME_RATE

MARK_FRAMES = 12
"""How often a conversation that may be set back is marked: about once a second."""

RECOVER_SECONDS = 2.0
"""How far back degenerate speech is undone: as long as its signs take to show."""

RECOVERIES, CALM_FRAMES = 3, 125
"""So many recoveries in a row are tried; what shows no sign for ten seconds after one was helped by it."""


MOST_FORCED = 750
"""Frames that the text which waits to be said may take: a minute."""


@dataclass(frozen=True)
class Limits:
    """What an engine keeps for each slot.

    `pinned_frames`: voice and role of up to as many frames stay in view for ever; 0 is the reference's plain window.
    `context_seconds`: a shorter window than the model's own, for less memory. `backlog_seconds`: unheard input beyond
    it is shed, oldest first. `unread_seconds`: a conversation of whose sound nobody reads as much is ended.
    `rewind_seconds`: how far a conversation can be set back (the window grows by as much). `prefix_bytes`: memory for
    prompts that were read, which are kept in `prefix_folder` too if one is named, in files of up to
    `prefix_folder_bytes` together. `voice_activity`: when a user counts as speaking; None does without. `recover`: set
    a conversation that repeats itself or makes noise back by two seconds, with another seed; if three times in a row
    do not help, it is left as it is. `kv_bits`: 8 keeps keys and values in half the memory.
    """

    pinned_frames: int = 256
    context_seconds: float | None = None
    backlog_seconds: float = 1.0
    unread_seconds: float = 60.0
    rewind_seconds: float = 0.0
    prefix_bytes: int = 1 << 30
    prefix_folder: Path | None = None
    prefix_folder_bytes: int = 1 << 30
    voice_activity: VoiceActivity | None = field(default_factory=VoiceActivity)
    recover: bool = False
    kv_bits: int = 16

    def __post_init__(self) -> None:
        check_kv_bits(self.kv_bits)
        if self.pinned_frames < 0:
            raise UsageError(f"pinned frames is {self.pinned_frames}; it must be 0 or more")
        for name in ("backlog_seconds", "unread_seconds"):
            if not 1 / FRAME_RATE <= getattr(self, name) < 1e6:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be one frame or more")
        if not 0 <= self.rewind_seconds < 1e6:
            raise UsageError(f"rewind seconds is {self.rewind_seconds}; it must be 0 or more")
        for name in ("prefix_bytes", "prefix_folder_bytes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be 0 or more")
        if self.recover and self.rewind_seconds < RECOVER_SECONDS:
            raise UsageError(f"recover goes back {RECOVER_SECONDS} s; rewind seconds must be as much or more")

    @property
    def spare_frames(self) -> int:
        """Frames beyond the window that the rings hold, so that a conversation can be set back."""
        return math.ceil(self.rewind_seconds * FRAME_RATE) + MARK_FRAMES if self.rewind_seconds else 0
