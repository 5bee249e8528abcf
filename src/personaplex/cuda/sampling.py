"""Drawing tokens in one launch, and the random numbers of a frame in another."""

from __future__ import annotations

import mlx.core as mx

from personaplex.cuda.kernel import Kernel

DRAW = Kernel(
    "draw_tokens",
    "draw<T, N, FREE>",
    ("logits", "noise", "temperature", "top_k", "wanted"),
    ("out",),
    ("warp.cuh", "sampling.cuh"),
)


def draw(
    logits: mx.array,
    noise: mx.array,
    temperature: mx.array,
    top_k: mx.array,
    wanted: mx.array,
    free: int,
    *,
    threads: int = 512,
) -> mx.array:
    """logits [B, V] (bfloat16 or float32) and `noise` [B, V] float32 -> tokens [B] int32.

    Among the `top_k` [B] int32 largest (0: all; 1: the first maximum, without noise), the first maximum of
    logits / temperature [B] + noise. A slot whose `wanted` [B] int32 is not `free` gets that instead.
    """
    slots, vocabulary = logits.shape
    (tokens,) = DRAW(
        [logits, noise, temperature, top_k, wanted],
        [((slots,), mx.int32)],
        blocks=slots,
        threads=threads,
        T=logits.dtype,
        N=vocabulary,
        FREE=free,
    )
    return tokens
