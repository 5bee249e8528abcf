"""Mimi's transformer for one frame's latents of one session, all its layers in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel

WARPS = 16
SHARES = 8
"""Parts of a head's ring, each read by a block of its own."""
_SHARED_BYTES = 48 * 1024


class LatentsLayer(NamedTuple):
    """A layer's weights, plain and in float32: gain, shift, two maps and a scale for each of its two branches."""

    norm1: mx.array
    shift1: mx.array
    in_proj: mx.array
    out_proj: mx.array
    scale1: mx.array
    norm2: mx.array
    shift2: mx.array
    linear1: mx.array
    linear2: mx.array
    scale2: mx.array


def serves(layers: Sequence[LatentsLayer], heads: int, n_tokens: int, context: int, *, shares: int = SHARES) -> bool:
    """Whether `step` can do layers like these."""
    (dim,), hidden = layers[0].norm1.shape, layers[0].linear1.shape[0]
    head = dim // heads
    room = n_tokens * max(dim, hidden, 3 * head + WARPS * (head + 2)) + n_tokens * (dim + head)
    return (
        all(array.dtype == mx.float32 for layer in layers for array in layer)
        and dim % 64 == hidden % 64 == head % 32 == 0
        and n_tokens <= 2
        and heads * shares <= kernels.multiprocessors()
        # What a warp holds of the keys and values beside each other.
        and -(-context // (shares * WARPS)) * head // 32 <= 8
        and 4 * room + 8 * len(layers) * 12 + 1024 <= _SHARED_BYTES
    )


def step(
    x: mx.array,
    position: mx.array,
    layers: Sequence[LatentsLayer],
    rings: Sequence[tuple[mx.array, mx.array]],
    context: int,
    period: float,
    *,
    warps: int = WARPS,
    shares: int = SHARES,
) -> mx.array:
    """The latents x [N, dim] from `position` [1] on through all layers -> [N, dim]; their keys and values are written
    into the rings [1, heads, n_rows, head], in place.

    Relies on as many blocks running at once as the card has multiprocessors: they wait for each other.
    """
    n_tokens, dim = x.shape
    _, heads, n_rows, head = rings[0][0].shape
    hidden = layers[0].linear1.shape[0]
    exchanged = n_tokens * (3 * dim + heads * shares * (head + 2) + dim + hidden + dim)
    # Where blocks count each other; of launches that follow each other, as in depformer.py.
    counters = mx.zeros((64,), mx.uint32)
    arrays = [array for layer, ring in zip(layers, rings, strict=True) for array in (*layer, *ring)]
    out, _ = _kernel(len(layers))(
        [x, position, counters, *arrays],
        [((n_tokens, dim), mx.float32), ((exchanged,), mx.float32)],
        blocks=kernels.multiprocessors(),
        threads=warps * 32,
        N=n_tokens,
        N_LAYERS=len(layers),
        DIM=dim,
        HEADS=heads,
        HIDDEN=hidden,
        N_ROWS=n_rows,
        CONTEXT=context,
        PERIOD=int(period),
        SHARES=shares,
        WARPS=warps,
    )
    return out


@cache
def _kernel(n_layers: int) -> Kernel:
    constants = "N, N_LAYERS, DIM, HEADS, HIDDEN, N_ROWS, CONTEXT, PERIOD, SHARES, WARPS"
    names = (*LatentsLayer._fields, "k", "v")
    return Kernel(
        "latents",
        f"latents<{constants}>",
        ("given", "position", "counters", *(f"{name}_{layer}" for layer in range(n_layers) for name in names)),
        ("out", "exchanged"),
        ("warp.cuh", "grid.cuh", "steps.cuh", "product.cuh", "latents.cuh"),
        most_threads=WARPS * 32,
    )
