"""The vectors of columns of tokens, a row of each stream's table added up, as one kernel."""

from __future__ import annotations

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.matrix import Matrix

_THREADS = 256
_EMBED = Kernel(
    "embedding",
    "embed<T, BITS, GROUP, N_AUDIO, N_AUDIO_ROWS, N_CHANNELS>",
    ("tokens", "text", "text_scales", "text_biases", "audio", "audio_scales", "audio_biases"),
    ("out",),
    ("warp.cuh", "embedding.cuh"),
)


def fits(tokens: mx.array, text: Matrix, audio: Matrix) -> bool:
    """Whether `embed` is to be used: both tables stored in one way that it can read, and tokens int32."""
    return (
        kernels.enabled()
        and tokens.dtype == mx.int32
        and text.dtype == audio.dtype
        and text.packed == audio.packed
        and text.packed[0] in (0, 2, 4, 8)
    )


def embed(tokens: mx.array, text: Matrix, audio: Matrix) -> mx.array:
    """tokens [..., 1 + K], the text's first -> [..., dim]: the sum of the rows of `text` [1, ...] and `audio` [K, ...].

    A token below zero counts as a vector of zeros.
    """
    n_audio, n_rows, _ = audio.weight.shape
    dim = audio.columns
    shape = (*tokens.shape[:-1], dim)
    n = tokens.size // (1 + n_audio)

    def given(tables: Matrix) -> list[mx.array]:
        # What is not there is never read, but needs a pointer.
        weight, scales, biases = tables[:3]
        return [weight, weight if scales is None else scales, weight if biases is None else biases]

    (out,) = _EMBED(
        [tokens, *given(text), *given(audio)],
        [(shape, text.dtype)],
        blocks=n * -(-dim // _THREADS),
        threads=_THREADS,
        T=text.dtype,
        BITS=text.packed[0],
        GROUP=text.packed[1],
        N_AUDIO=n_audio,
        N_AUDIO_ROWS=n_rows,
        N_CHANNELS=dim,
    )
    return out
