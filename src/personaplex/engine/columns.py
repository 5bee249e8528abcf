"""The tokens around one step of the model: what is heard and wanted before it, what was said after it.

A column holds what is known at one position: the text and codes of the agent that were drawn a step ago, and the user's
codes, of which the acoustic ones are a frame behind the semantic one.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import columns as kernels
from personaplex.cuda.kernel import enabled
from personaplex.models.streams import (
    AGENT,
    AGENT_ACOUSTIC,
    N_STREAMS,
    TEXT,
    UNGENERATED,
    USER,
    USER_ACOUSTIC,
)
from personaplex.units import N_CODEBOOKS

_SPOKEN = slice(TEXT, AGENT.stop)
_STREAMS = kernels.Streams(N_STREAMS, AGENT_ACOUSTIC.start, USER.start, UNGENERATED)


class Said(NamedTuple):
    """What a step leaves: the `next` column and this frame's `tokens` [B, 17], `recent` tokens [B, W, 9], and whether
    the frame is more than the initial tokens, `valid` [B].
    """

    next: mx.array
    tokens: mx.array
    recent: mx.array
    valid: mx.array


def begin_column(
    initial: mx.array, user: mx.array, column: mx.array, position: mx.array, forced: mx.array
) -> tuple[mx.array, mx.array]:
    """The whole column at `position` [B], and what is `wanted` of the next one, both [B, 17].

    `user` [B, 8] completes the pending `column` [B, 17]. `forced` [B, 17] are tokens to come, UNGENERATED where they
    are to be drawn; of its user streams nothing is taken.
    """
    user, forced = user.astype(mx.int32), forced.astype(mx.int32)
    if enabled():
        return kernels.begin_column(_STREAMS, user, column, position, forced, initial)
    first = (position == 0)[:, None]
    initial = mx.broadcast_to(initial, column.shape)
    # Position 0 holds the initial tokens whatever is heard, and frame 0 is lost (reference lm.py).
    user = mx.where(first, initial[:, USER], user)
    heard = mx.concatenate([column[:, _SPOKEN], user[:, :1], column[:, USER_ACOUSTIC]], axis=1)
    acoustic = mx.where(first, initial[:, AGENT_ACOUSTIC], forced[:, AGENT_ACOUSTIC])
    # Of the next column's user half, the acoustic codes of this frame are known already.
    nothing = mx.full((column.shape[0], 1), UNGENERATED, mx.int32)
    return heard, mx.concatenate([forced[:, : AGENT_ACOUSTIC.start], acoustic, nothing, user[:, 1:]], axis=1)


def end_column(
    heard: mx.array, wanted: mx.array, position: mx.array, text: mx.array, codes: mx.array, recent: mx.array
) -> Said:
    """What `text` [B] and `codes` [B, S] make of the columns that `begin_column` gave."""
    if enabled():
        return Said(*kernels.end_column(_STREAMS, heard, wanted, position, text, codes, recent))
    said = spoken(text, codes)
    after = mx.concatenate([said, wanted[:, USER]], axis=1)
    user = [heard[:, USER.start : USER.start + 1], wanted[:, USER_ACOUSTIC]]
    tokens = mx.concatenate([heard[:, : AGENT_ACOUSTIC.start], said[:, AGENT_ACOUSTIC], *user], axis=1)
    return Said(after, tokens, remember(recent, said), position != 0)


def spoken(text: mx.array, codes: mx.array) -> mx.array:
    """text [B], codes [B, S] -> the agent's streams of a column [B, 9]."""
    return mx.concatenate([text[:, None], codes[:, :N_CODEBOOKS]], axis=1)


def remember(recent: mx.array, said: mx.array) -> mx.array:
    """recent [B, W, 9] with what was said [B, 9] at its end, and no longer for it."""
    return mx.concatenate([recent[:, 1:], said[:, None]], axis=1)
