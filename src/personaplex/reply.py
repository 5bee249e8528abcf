"""What the program answers with: frames as they are made, chunks of them, and the whole reply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from personaplex.audio import write_audio
from personaplex.engine.duplex import DuplexState
from personaplex.engine.sampling import Sampling
from personaplex.steps import StepMeasure, StepRecord
from personaplex.units import FRAME_SECONDS, SAMPLE_RATE


@dataclass(frozen=True)
class AgentFrame:
    """80 ms of the agent: `audio` [1920] float32, the `text` completed in it, its `tokens` [17], the step's time.

    `measure` also tells how much in doubt its tokens were; None where no model of ours made the frame.
    """

    index: int
    audio: np.ndarray
    text: str
    tokens: np.ndarray
    step_ms: float
    measure: StepMeasure | None = None


@dataclass(frozen=True)
class Chunk:
    """Some consecutive frames of a reply: `audio` [1920 n] float32 at 24 kHz. Only the last has `is_last`."""

    index: int
    first_frame: int
    audio: np.ndarray
    text: str
    tokens: np.ndarray
    is_last: bool


@dataclass(frozen=True)
class Timings:
    """Wall clock of the prompt's prefill and of every step, in milliseconds; the caller's own time is not in it."""

    prefill_ms: float
    step_ms: list[float] = field(repr=False)

    @property
    def total_ms(self) -> float:
        """Prefill and all steps."""
        return self.prefill_ms + sum(self.step_ms)

    @property
    def n_frames(self) -> int:
        """Frames stepped."""
        return len(self.step_ms)

    @property
    def rtf(self) -> float:
        """Real-time factor: time taken over time of audio made; below 1 is faster than real time."""
        return self.total_ms / (1000 * FRAME_SECONDS * self.n_frames) if self.step_ms else math.nan

    def percentile(self, percent: float) -> float:
        """A percentile of the step times, milliseconds."""
        return float(np.percentile(self.step_ms, percent)) if self.step_ms else math.nan


@dataclass(frozen=True)
class TalkState:
    """A conversation that can go on: hand it, or the Reply that holds it, to the next `respond(state=...)`."""

    duplex: DuplexState = field(repr=False)
    sampling: Sampling


@dataclass(frozen=True)
class Reply:
    """A whole answer.

    `audio` [S] float32 at 24 kHz starts with the user's first frame and runs past the user's end; `tokens` [17, T]
    int32 are all streams; `text` is what the agent said, `texts` what of it each frame completed, `steps` what each
    step tells of itself; `stopped` is why it ended: silence, limit or cancelled.
    """

    audio: np.ndarray = field(repr=False)
    text: str
    tokens: np.ndarray = field(repr=False)
    timings: Timings
    seed: int
    user_frames: int
    stopped: str
    state: TalkState = field(repr=False)
    texts: tuple[str, ...] = field(default=(), repr=False)
    steps: StepRecord = field(default=StepRecord((), ()), repr=False)

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.audio) / SAMPLE_RATE

    def save(self, path: str | Path) -> Path:
        """Write the audio (suffix .wav, .flac, .ogg or .mp3), whole or not at all.

        Raises OutputError when it cannot be written, UsageError for another suffix.
        """
        write_audio(Path(path), self.audio)
        return Path(path)
