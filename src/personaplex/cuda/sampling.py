"""Drawing tokens in one launch, the random numbers of a frame in another, and how much in doubt the draws were."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from personaplex.cuda.kernel import Kernel

DRAW = Kernel(
    "draw_tokens",
    "draw<V, DRAWS, COLUMNS, FREE, GREEDY>",
    ("logits", "noise", "temperature", "top_k", "wanted", "which"),
    ("out",),
    ("warp.cuh", "sampling.cuh"),
)
NOISE = Kernel(
    "draw_noise",
    "frame_noise<V, DRAWS, FIRST, ALL_DRAWS, BLOCKS>",
    ("key", "position"),
    ("noise",),
    ("warp.cuh", "noise.cuh"),
)
ENTROPIES = Kernel(
    "entropies_of_a_step",
    "step_entropies<V, W, STEPS, CODES>",
    ("text", "audio"),
    ("out",),
    ("warp.cuh", "entropy.cuh"),
)
DRAW_THREADS = 512
NOISE_THREADS = 256


def draw(
    logits: mx.array,
    noise: mx.array | None,
    temperature: mx.array,
    top_k: mx.array,
    wanted: mx.array,
    *,
    which: int,
    column: int,
    free: int,
    threads: int | None = None,
) -> mx.array:
    """logits [B, V] (bfloat16 or float32) and `noise` [B, n, V] float32, of draw `which` -> tokens [B] int32.

    Among the `top_k` [B] int32 largest (0: all; 1: the first maximum, without noise), the first maximum of
    logits / temperature [B] + noise. A slot whose `wanted` [B, m] int32 in `column` is not `free` gets that instead.
    No noise: the first maximum for all slots.
    """
    slots, vocabulary = logits.shape
    (tokens,) = DRAW(
        [logits, temperature if noise is None else noise, temperature, top_k, wanted, _pair(which, column)],
        [((slots,), mx.int32)],
        blocks=slots,
        threads=threads or DRAW_THREADS,
        V=vocabulary,
        DRAWS=0 if noise is None else noise.shape[1],
        COLUMNS=wanted.shape[1],
        FREE=free,
        GREEDY=noise is None,
    )
    return tokens


def noise(key: mx.array, position: mx.array, draws: range, n_draws: int, vocabulary: int) -> mx.array:
    """Gumbel noise [B, n, V] for some of a frame's `n_draws`, at `position` [B] of sessions with `key` [B, 2] uint32.

    The numbers of mx.random.gumbel with the keys that mx.random.split makes of a session's.
    """
    slots, threads = key.shape[0], NOISE_THREADS
    # Two numbers a thread, until there are many slots.
    blocks = -(-(vocabulary - vocabulary // 2) // (threads * min(slots, 8)))
    (made,) = NOISE(
        [key, position],
        [((slots, len(draws), vocabulary), mx.float32)],
        blocks=slots * len(draws) * blocks,
        threads=threads,
        V=vocabulary,
        DRAWS=len(draws),
        FIRST=draws.start,
        ALL_DRAWS=n_draws,
        BLOCKS=blocks,
    )
    return made


def step_entropies(text_logits: mx.array, audio_logits: mx.array, n_codes: int) -> mx.array:
    """Logits [B, V] and [B, n, W] -> [B, 3] nats: of text, of the first code, of `n_codes` - 1 more on average."""
    slots, steps, card = audio_logits.shape
    (found,) = ENTROPIES(
        [text_logits, audio_logits],
        [((slots, 3), mx.float32)],
        blocks=slots,
        threads=DRAW_THREADS,
        V=text_logits.shape[1],
        W=card,
        STEPS=steps,
        CODES=n_codes,
    )
    return found


@cache
def _pair(first: int, second: int) -> mx.array:
    """Made once: a number that changes from draw to draw would be a kernel for each if it were a constant."""
    return mx.array([first, second], mx.int32)
