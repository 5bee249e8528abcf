"""What makes the agent sound like somebody: a short recording, or what the model made of one."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from personaplex.errors import PersonaError

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


def blend(first: Voice, second: Voice, weight: float, name: str) -> Voice:
    """The mean of two voices' embeddings, the second counting `weight`, as long as the shorter of them. Experimental.

    Raises PersonaError for voices without embeddings, or of different models, and for a weight beyond 0 ... 1.
    """
    if first.embeddings is None or second.embeddings is None:
        raise PersonaError("voices are blended by their embeddings; one of these has none")
    if first.embeddings.shape[1] != second.embeddings.shape[1]:
        raise PersonaError(f"voices {first.name} and {second.name} were made for different models")
    if not 0 <= weight <= 1:
        raise PersonaError(f"the second voice's weight is {weight}; it must be from 0 to 1")
    n = min(len(first.embeddings), len(second.embeddings))
    # Its end is where the tokens of a ring belong.
    shorter = first if len(first.embeddings) == n else second
    a, b = (voice.embeddings[:n].astype(mx.float32) for voice in (first, second))  # type: ignore[index]
    mixed = ((1 - weight) * a + weight * b).astype(first.embeddings.dtype)
    return Voice(name, embeddings=mixed, ring=shorter.ring)
