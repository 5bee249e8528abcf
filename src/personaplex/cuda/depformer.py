"""One frame of the depformer, its codes drawn, in one launch whose blocks wait for each other.

One caller's frame is 8 steps of 6 small layers: two thousand operations of which each takes the card less time than it
takes to be started. Here they are one. What bounds it is reading the weights (8 x 83 million in the 7B: 0.3 ms in
bfloat16 on a card that reads 4.3 TB/s) and 201 meetings of all blocks: with what is done between
two, some 5 us each.

It relies on all blocks being on the card at once: no more of them than multiprocessors, each of at most 512 threads
with 128 registers and 48 KB of shared memory, which one always holds. Two such launches beside each other could keep
each other from being on it as a whole: then the launch ends as an error after seconds, and the card does not hang.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.matrix import LayerWeights, Matrix

_SHARED_BYTES = 48 * 1024
_FIXED_BYTES = 4 * 1024
"""Of those, what the table of pointers and the sums may take."""
_MOST_SLOTS = 4
_MOST_THREADS = 512
"""Of a block: a multiprocessor has 128 registers for each of so many."""
_COUNTERS = 64
"""As in grid.cuh."""


class Weights(NamedTuple):
    """A depformer of `n_steps` with `n_heads`: input_proj and heads [S, out, in], text_emb [1, rows, dim], audio_emb
    [S - 1, card + 1, dim].
    """

    n_steps: int
    n_heads: int
    input_proj: Matrix
    text_emb: Matrix
    audio_emb: Matrix
    heads: Matrix
    layers: tuple[LayerWeights, ...]

    def arrays(self) -> Iterator[mx.array]:
        """What the kernel is given, in its order."""
        for matrix in (self.input_proj, self.text_emb, self.audio_emb, self.heads):
            yield from matrix.arrays
        for layer in self.layers:
            yield from layer.arrays

    @property
    def maps(self) -> list[Matrix]:
        """All that is packed like the layers: they and the input map."""
        return [self.input_proj, *(each for layer in self.layers for each in layer if isinstance(each, Matrix))]


class Choice(NamedTuple):
    """How codes are chosen: as `cuda.sampling.draw` does.

    `wanted` [B, m] int32 has the steps' codes from `column` on, -2 where one is to be drawn; `noise` [B, S, card]
    float32 (None: the first maximum); `temperature` [B] float32, `top_k` [B] int32 (0: all).
    """

    wanted: mx.array
    column: int
    noise: mx.array | None
    temperature: mx.array
    top_k: mx.array

    def arrays(self) -> tuple[mx.array, ...]:
        """What the kernel is given, in its order."""
        if self.noise is None:
            return self.wanted, self.temperature, self.temperature, _ones(self.top_k.size)
        return self.wanted, self.noise, self.temperature, self.top_k


@cache
def _ones(slots: int) -> mx.array:
    return mx.ones((slots,), mx.int32)


class Tuning(NamedTuple):
    """How the work is cut up.

    `threads` (at most 512) of each block on each multiprocessor; warps take `rows` of a matrix at a time, `pairs` of
    gate and value, one row of narrow matrices, whose lanes hold up to `whole` chunks at once; the weights of the
    `ahead` next matrices are asked for into the L2 cache, and with `early` a warp's first are loaded before all blocks
    have met.
    """

    threads: int = 512
    rows: int = 2
    pairs: int = 1
    whole: int = 12
    ahead: int = 2
    early: bool = True


TUNING, TUNING_OF_ONE = Tuning(), Tuning(pairs=2)
"""As many registers as there are: more for one slot of plain bfloat16."""


def serves(weights: Weights, z: mx.array) -> bool:
    """Whether `draw_frame` can compute z [B, z_dim] with these weights."""
    slots, z_dim = z.shape
    dim, hidden, card = _dims(weights)
    room = (dim + max(z_dim, hidden, dim)) * slots * z.dtype.size + _FIXED_BYTES
    tables = {weights.text_emb.packing, weights.audio_emb.packing}
    packings = [*tables, weights.heads.packing, weights.input_proj.packing]
    return (
        slots <= _MOST_SLOTS
        and z.dtype in (mx.bfloat16, mx.float32)
        and all(array.dtype in (z.dtype, mx.uint32) for array in weights.arrays())
        and len({one.packing for one in weights.maps}) == len(tables) == 1
        and all(bits in (4, 8, 16) and group % 8 == 0 for bits, group in packings)
        and all(size % 8 == 0 for size in (dim, hidden, card, z_dim))
        and room <= _SHARED_BYTES
    )


def draw_frame(
    weights: Weights,
    z: mx.array,
    text: mx.array,
    choice: Choice,
    *,
    blocks: int | None = None,
    tuning: Tuning | None = None,
) -> tuple[mx.array, mx.array]:
    """z [B, z_dim], text [B] -> codes [B, S] int32, logits [B, S, card].

    As many `blocks` as multiprocessors by default.
    """
    slots, z_dim = z.shape
    dim, hidden, card = _dims(weights)
    steps, layers = weights.n_steps, len(weights.layers)
    arrays = list(weights.arrays())
    layer_bits, layer_group = weights.input_proj.packing
    head_bits, head_group = weights.heads.packing
    table_bits, table_group = weights.text_emb.packing
    exchanged = slots * (steps * dim + layers * steps * 3 * dim + dim + hidden)
    plain_one = slots == 1 and z.dtype == mx.bfloat16 and layer_bits == 16
    tuning = tuning or (TUNING_OF_ONE if plain_one else TUNING)
    # Launches of one compiled step share them, for MLX makes equal arrays once: each waits for the one before, whose
    # results it needs, and every launch leaves them zero.
    counters = mx.zeros((_COUNTERS,), mx.uint32)
    codes, logits, _ = _kernel(len(arrays))(
        [z, text.astype(mx.int32), *choice.arrays(), counters, *arrays],
        [((slots, steps), mx.int32), ((slots, steps, card), z.dtype), ((exchanged,), z.dtype)],
        blocks=blocks or kernels.multiprocessors(),
        threads=tuning.threads,
        T=z.dtype,
        N=slots,
        N_STEPS=steps,
        N_LAYERS=layers,
        DIM=dim,
        N_HEADS=weights.n_heads,
        HIDDEN=hidden,
        Z_DIM=z_dim,
        CARD=card,
        LAYER_BITS=layer_bits,
        LAYER_GROUP=layer_group,
        HEAD_BITS=head_bits,
        HEAD_GROUP=head_group,
        TABLE_BITS=table_bits,
        TABLE_GROUP=table_group,
        COLUMNS=choice.wanted.shape[1],
        COLUMN=choice.column,
        N_ROWS=tuning.rows,
        N_PAIRS=tuning.pairs,
        ONE_ROW=tuning.whole,
        AHEAD=tuning.ahead,
        EARLY=tuning.early,
    )
    return codes, logits


def _dims(weights: Weights) -> tuple[int, int, int]:
    layer = weights.layers[0]
    return layer.norm1.size, layer.linear_in.weight.shape[1] // 2, weights.heads.weight.shape[1]


@cache
def _kernel(n_weights: int) -> Kernel:
    constants = (
        "T, N, N_STEPS, N_LAYERS, DIM, N_HEADS, HIDDEN, Z_DIM, CARD, LAYER_BITS, LAYER_GROUP, "
        "HEAD_BITS, HEAD_GROUP, TABLE_BITS, TABLE_GROUP, COLUMNS, COLUMN, N_ROWS, N_PAIRS, ONE_ROW, AHEAD, EARLY"
    )
    given = ("z", "text", "wanted", "noise", "temperature", "top_k", "counters")
    return Kernel(
        "depformer_frame",
        f"depformer<{constants}>",
        given + tuple(f"weight{i}" for i in range(n_weights)),
        ("codes", "logits", "exchanged"),
        ("warp.cuh", "grid.cuh", "sampling.cuh", "steps.cuh", "product.cuh", "depformer.cuh"),
        most_threads=_MOST_THREADS,
    )


def attends(rows: mx.array, n_heads: int) -> bool:
    """Whether `attend_steps` can compute rows like these."""
    head = rows.shape[1] // 3 // n_heads
    return rows.dtype in (mx.bfloat16, mx.float32) and head % 2 == 0


def attend_steps(rows: Sequence[mx.array], n_heads: int, n_steps: int) -> mx.array:
    """Causal attention of the latest of at most `n_steps` steps: queries, keys and values [B, 3 dim] of each so far
    -> [B, dim].
    """
    slots, width = rows[-1].shape
    # One kernel for all steps: it is always given as many arrays, and does not read those to come.
    (out,) = _attention(n_steps)(
        [_latest(len(rows) - 1), *rows, *[rows[-1]] * (n_steps - len(rows))],
        [((slots, width // 3), rows[-1].dtype)],
        blocks=slots,
        threads=min(n_heads, ATTENTION_WARPS) * 32,
        T=rows[-1].dtype,
        DIM=width // 3,
        N_HEADS=n_heads,
    )
    return out


ATTENTION_WARPS = 16


@cache
def _latest(step: int) -> mx.array:
    return mx.array([step], mx.int32)


@cache
def _attention(n_steps: int) -> Kernel:
    given = ("latest", *(f"step{i}" for i in range(n_steps)))
    return Kernel("attend_steps", "attend_latest<T, DIM, N_HEADS>", given, ("out",), ("warp.cuh", "steps.cuh"))
