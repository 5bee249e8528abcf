"""The tokens of one step, before and after the model: a launch each (engine/columns.py says what they mean)."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda.kernel import Constant, Kernel

BEGIN = Kernel(
    "begin_column_of_tokens",
    "begin_column<STREAMS, ACOUSTIC, USER, FREE>",
    ("user", "column", "position", "forced", "initial"),
    ("heard", "wanted"),
    ("columns.cuh",),
)
END = Kernel(
    "end_column_of_tokens",
    "end_column<STREAMS, ACOUSTIC, USER, FREE, STEPS, FRAMES>",
    ("heard", "wanted", "position", "text", "codes", "recent"),
    ("next", "tokens", "remembered", "valid"),
    ("columns.cuh",),
)
_THREADS = 32


class Streams(NamedTuple):
    """How many streams there are, where the agent's acoustic codes and the user's begin, and what says "draw"."""

    n: int
    acoustic: int
    user: int
    free: int

    @property
    def constants(self) -> dict[str, Constant]:
        """As the kernels take them."""
        return {"STREAMS": self.n, "ACOUSTIC": self.acoustic, "USER": self.user, "FREE": self.free}


def begin_column(
    streams: Streams, user: mx.array, column: mx.array, position: mx.array, forced: mx.array, initial: mx.array
) -> tuple[mx.array, mx.array]:
    """user [B, 8], column and forced [B, 17], initial [1, 17], all int32 -> heard and wanted [B, 17] int32."""
    heard, wanted = BEGIN(
        [user, column, position, forced, initial],
        [(column.shape, mx.int32)] * 2,
        blocks=column.shape[0],
        threads=_THREADS,
        **streams.constants,
    )
    return heard, wanted


def end_column(
    streams: Streams,
    heard: mx.array,
    wanted: mx.array,
    position: mx.array,
    text: mx.array,
    codes: mx.array,
    recent: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """text [B], codes [B, S], recent [B, W, 9] int32 -> next column, tokens [B, 17], recent, valid [B] bool."""
    next_column, tokens, remembered, valid = END(
        [heard, wanted, position, text, codes, recent],
        [(heard.shape, mx.int32)] * 2 + [(recent.shape, mx.int32), (position.shape, mx.bool_)],
        blocks=heard.shape[0],
        threads=_THREADS,
        STEPS=codes.shape[1],
        FRAMES=recent.shape[1],
        **streams.constants,
    )
    return next_column, tokens, remembered, valid
