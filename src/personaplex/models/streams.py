"""The 17 token streams of the language model and the delays between them.

A frame is what was said in one 80 ms: text, 8 agent codes, 8 user codes. A column is what the model reads at one
position: text and semantic codes of frame p beside the acoustic codes of frame p - 1 (delay 1).
"""

from __future__ import annotations

import mlx.core as mx

from personaplex.config import LMConfig
from personaplex.units import N_CODEBOOKS

N_STREAMS = 1 + 2 * N_CODEBOOKS
TEXT = 0
AGENT = slice(1, 1 + N_CODEBOOKS)
USER = slice(1 + N_CODEBOOKS, N_STREAMS)
AGENT_SEMANTIC, USER_SEMANTIC = AGENT.start, USER.start
AGENT_ACOUSTIC = slice(AGENT.start + 1, AGENT.stop)
USER_ACOUSTIC = slice(USER.start + 1, USER.stop)

UNGENERATED = -2
"""A place in a column that the model is still to fill."""

DELAYS = (0, *(0, *(1,) * (N_CODEBOOKS - 1)) * 2)


def initial_column(config: LMConfig) -> list[int]:
    """The tokens before the first frame: one past the end of each vocabulary."""
    return [config.text_card] + [config.card] * (N_STREAMS - 1)


def delay(frames: mx.array, initial: list[int]) -> mx.array:
    """Frames [B, 17, T] -> columns [B, 17, T]; acoustic codes move one later, the initial token takes their place."""
    first = mx.broadcast_to(mx.array(initial, frames.dtype)[None, :, None], (*frames.shape[:2], 1))
    shifted = mx.concatenate([first, frames[:, :, :-1]], axis=2)
    return mx.where(mx.array(DELAYS)[None, :, None] == 1, shifted, frames)


def undelay(columns: mx.array, first: int = 0) -> mx.array:
    """Values by column [B, n, T, ...] of streams first ... first + n - 1 -> by frame [B, n, T - 1, ...].

    The last column is lost: it holds only the acoustic half of the frame before it.
    """
    delayed = mx.array(DELAYS[first : first + columns.shape[1]]) == 1
    delayed = delayed.reshape(1, -1, *[1] * (columns.ndim - 2))
    return mx.where(delayed, columns[:, :, 1:], columns[:, :, :-1])
