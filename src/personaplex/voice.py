"""What makes the agent sound like somebody: a short recording, or what the model made of one."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

RING_COLUMNS = 4
"""Columns in the token ring that a saved voice carries: column p lies at p mod 4."""


@dataclass(frozen=True)
class Voice:
    """A voice prompt: either `codes` [F, 8] of a recording, or what the model made of one.

    In the second form `embeddings` [V, dim] are the summed input embeddings of positions 0 ... V - 1 and `ring` [17, 4]
    the tokens around position V; a recording of F frames gives V = F - 1.
    """

    name: str
    codes: np.ndarray | None = None
    embeddings: mx.array | None = None
    ring: np.ndarray | None = None

    def __post_init__(self) -> None:
        # What MLX has not computed yet can be computed only by the thread that asked for it; others may use the voice.
        if self.embeddings is not None:
            mx.eval(self.embeddings)
