"""What the host reads of a step: everything in one array, so that a frame is one evaluation and one transfer."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from personaplex.engine.generator import GeneratorState, Step
from personaplex.engine.sampling import step_entropies
from personaplex.models.streams import N_STREAMS
from personaplex.nn.sinks import due_shift
from personaplex.units import FRAME_SAMPLES

_ENTROPIES = 3


class Readout(NamedTuple):
    """One step on the host, by slot: `pcm` [B, 1920], `entropies` [B, 3] as `step_entropies` gives them, `tokens`
    [B, 17], `valid` [B] as in `Step`, `hears` [B]: that what the codec made of the user is finite; and where the slots
    are now, which says whether pinned prompts are to follow before the next step.
    """

    pcm: np.ndarray
    entropies: np.ndarray
    tokens: np.ndarray
    valid: np.ndarray
    hears: np.ndarray
    position: np.ndarray
    pinned: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, packed: mx.array) -> Readout:
        """What `pack` packed, evaluated."""
        read = np.array(packed)
        pcm, entropies, bits = np.split(read, [FRAME_SAMPLES, FRAME_SAMPLES + _ENTROPIES], axis=1)
        whole = bits.view(np.int32)
        valid, hears, position, pinned, shift = whole[:, N_STREAMS:].T
        tokens = whole[:, :N_STREAMS]
        return cls(pcm, entropies, tokens, valid.astype(bool), hears.astype(bool), position, pinned, shift)

    def must_follow(self, context: int) -> bool:
        """Whether some pinned prompt is to be brought after its window of `context` before the next step."""
        return not np.array_equal(due_shift(self.position, self.pinned, context), self.shift)


def pack(pcm: mx.array, step: Step, latents: mx.array, state: GeneratorState) -> mx.array:
    """A step's sound [B, 1920], results, latents [B, ...] of the user, and the state after it -> [B, n] float32.

    Whole numbers keep their bits.
    """
    finite = mx.isfinite(latents).all(axis=tuple(range(1, latents.ndim)))
    at = (step.valid, finite, state.temporal.position, state.pinned, state.sinks.shift)
    whole = mx.concatenate([step.tokens, *(column[:, None].astype(mx.int32) for column in at)], axis=1)
    entropies = step_entropies(step.text_logits, step.audio_logits)
    return mx.concatenate([pcm, entropies, whole.view(mx.float32)], axis=1)
