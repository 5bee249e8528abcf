"""One frame of the depformer for one session, its codes drawn, in one launch by tensor cores.

As `cuda.depformer` does it, for one caller in bfloat16, a sixth faster: weights come in by copies that run ahead over
the meetings, and products cost next to nothing. What bounds both is the chain of 201 meetings (benchmarks/log.md).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.depformer import Choice, Weights
from personaplex.cuda.flow import LINE, most_stages, unit_bytes, work_bytes
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.matrix import Matrix

WARPS = 16
_SELECTION = 4 * 2048 + 4 * 32 + 8 + 8 * 32
"""Bytes of `Selection` in sampling.cuh."""


class _Form(NamedTuple):
    """What the kernel is built for."""

    n_steps: int
    n_layers: int
    dim: int
    n_heads: int
    hidden: int
    z_dim: int
    card: int
    bits: int
    head_bits: int
    table_bits: int
    table_group: int


def _form(weights: Weights, z: mx.array) -> _Form:
    return _Form(
        weights.n_steps,
        len(weights.layers),
        weights.layers[0].norm1.size,
        weights.n_heads,
        weights.layers[0].linear_in.weight.shape[1] // 2,
        z.shape[1],
        weights.heads.weight.shape[1],
        weights.input_proj.packing[0],
        weights.heads.packing[0],
        *weights.text_emb.packing,
    )


def serves(weights: Weights, z: mx.array) -> bool:
    """Whether `draw_frame` can compute z [1, z_dim] with these weights."""
    if z.shape[0] != 1 or not all(array.dtype in (mx.bfloat16, mx.uint32) for array in (z, *weights.arrays())):
        return False

    def fits(matrix: Matrix) -> bool:
        bits, group = matrix.packing
        return bits in (4, 8, 16) and group == 64 and matrix.columns % 256 == 0 and matrix.weight.shape[-2] % 16 == 0

    form = _form(weights, z)
    tables = {weights.text_emb.packing, weights.audio_emb.packing}
    return (
        all(map(fits, (*weights.maps, weights.heads)))
        and len({one.packing for one in weights.maps}) == len(tables) == 1
        and form.head_bits in (16, form.bits)
        and form.table_bits in (4, 8, 16)
        and form.table_group % 8 == form.dim // form.n_heads % 2 == 0
        and _room(form, WARPS, kernels.multiprocessors())[1] >= 2
    )


def draw_frame(
    weights: Weights, z: mx.array, text: mx.array, choice: Choice, *, blocks: int | None = None, warps: int = WARPS
) -> tuple[mx.array, mx.array]:
    """z [1, z_dim], text [1] -> codes [1, S] int32, logits [1, S, card].

    As many `blocks` as multiprocessors by default: they wait for each other.
    """
    form, arrays = _form(weights, z), list(weights.arrays())
    blocks = blocks or kernels.multiprocessors()
    fixed, stages = _room(form, warps, blocks)
    exchanged = form.n_steps * form.dim * (1 + 3 * form.n_layers) + 2 * form.dim + form.hidden
    # Launches of one compiled step share them, for MLX makes equal arrays once: each waits for the one before, whose
    # results it needs, and every launch leaves them zero.
    counters = mx.zeros((64,), mx.uint32)
    shared = fixed + warps * stages * _unit(form)
    codes, logits, _ = _kernel(form, len(arrays), choice.column, warps, blocks, stages, shared)(
        [z, text.astype(mx.int32), *choice.arrays(), counters, *arrays],
        [((1, form.n_steps), mx.int32), ((1, form.n_steps, form.card), z.dtype), ((exchanged,), z.dtype)],
        blocks=blocks,
        threads=warps * 32,
    )
    return codes, logits


def _unit(form: _Form) -> int:
    return max(unit_bytes(bits, 2) for bits in (form.bits, form.head_bits))


def _room(form: _Form, warps: int, blocks: int) -> tuple[int, int]:
    """(bytes that a block works with, units of which a warp's ring has room): `Codes` in the source."""
    maps = (
        (form.z_dim, form.n_steps * form.dim),
        (form.dim, 3 * form.dim),
        (form.dim, form.dim),
        (form.dim, 2 * form.hidden),
        (form.hidden, form.dim),
        (form.dim, form.card),
    )
    work = max(*(work_bytes(*sizes, warps, blocks) for sizes in maps), form.card * 2 + _SELECTION)
    fixed = -(-(-(-work // 16) * 16 + 4 * form.dim) // LINE) * LINE + LINE
    table = 8 * (12 + 14 * form.n_layers + 3)
    return fixed, most_stages(fixed + table, warps, _unit(form))


@cache
def _kernel(form: _Form, n_weights: int, column: int, warps: int, blocks: int, stages: int, shared: int) -> Kernel:
    given = ("z", "text", "wanted", "noise", "temperature", "top_k", "counters")
    constants = (*form, column, warps, blocks, stages, shared)
    return Kernel(
        "codes_of_frame",
        f"codes_of_frame<{', '.join(map(str, constants))}>",
        given + tuple(f"weight{i}" for i in range(n_weights)),
        ("codes", "logits", "exchanged"),
        ("warp.cuh", "grid.cuh", "sampling.cuh", "steps.cuh", "tiles.cuh", "flow.cuh", "parts.cuh", "codes.cuh"),
        shared,
        most_threads=warps * 32,
    )
