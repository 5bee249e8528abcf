"""The clock of the whole system: one frame of speech, derived once.

Time is counted in frames and samples everywhere else; seconds appear only where a person reads or types them.
"""

from __future__ import annotations

SAMPLE_RATE = 24_000
"""Samples per second of every waveform inside the program (mono, float32)."""

FRAME_SAMPLES = 1_920
"""Samples in one frame: the codec turns them into one column of codes."""

FRAME_RATE = SAMPLE_RATE / FRAME_SAMPLES
"""Frames per second: 12.5."""

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
"""Seconds in one frame: 0.08."""

N_CODEBOOKS = 8
"""Codebooks per speaker that the language model hears and speaks."""

SILENCE_CODES = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""Mimi's codes of digital silence, as the reference forces them on the agent while it is prompted."""

SINE_CODES = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""Mimi's codes of a 440 Hz tone, as the reference forces them on the user while the agent is prompted."""


def frames_in(n_samples: int) -> int:
    """Frames needed to hold `n_samples`, the last one padded."""
    return -(-n_samples // FRAME_SAMPLES)
