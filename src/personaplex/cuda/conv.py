"""Mimi's convolutions on an NVIDIA card: each with its activations, its residual and its state in one kernel.

MLX's own path is a concatenation, a convolution or product, a bias, an activation and two slices, each a launch that
takes longer than its arithmetic when one frame is coded. Float32 throughout, as Mimi is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.sizes import on_card
from personaplex.errors import BackendError

_TRANSPOSED, _ELU_IN, _ELU_OUT, _ADDS, _REPEATS = (1 << bit for bit in range(5))
_INPUTS = ("x", "past", "weight", "bias", "residual", "begun", "size")
_OUTPUTS = ("y", "after", "begun_after")
_SOURCES = ("warp.cuh", "vector.cuh", "conv.cuh")
_UPSAMPLE = Kernel("conv_upsample", "upsample", ("x", "last", "weight", "size"), ("y",), _SOURCES)


@dataclass(frozen=True)
class Tile:
    """What a block computes: `rows` outputs in time by `columns`, its warps `tm` x `tn` per thread of a slice's depth.

    A warp's tile is 4 `tm` x 8 `tn`; `slices` groups of warps share the depth and add up at the end.
    """

    rows: int
    columns: int
    tm: int
    tn: int
    slices: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.rows // (4 * self.tm)) * (self.columns // (8 * self.tn)) * self.slices

    @property
    def depth(self) -> int:
        """Terms that a block takes at a time."""
        return max(32, 16 * self.slices)

    def blocks(self, rows: int, columns: int) -> int:
        """That cover a result."""
        return math.ceil(rows / self.rows) * math.ceil(columns / self.columns)


@dataclass(frozen=True)
class Rows:
    """For few outputs in time: `split` of a block's `warps` share a column, and read `ahead` x 16 bytes at once."""

    split: int
    ahead: int = 8
    warps: int = 8


TILES = (
    Tile(16, 8, 4, 1, 8),
    Tile(16, 32, 4, 4, 8),
    Tile(32, 32, 4, 4, 4),
    Tile(64, 32, 8, 4, 2),
    Tile(64, 64, 8, 4, 1),
)
"""From the one for little work on many blocks to the one for much."""

MOST_ROWS = 8
"""Outputs in time up to which the weights, read once, are what counts."""


@dataclass(frozen=True)
class Shape:
    """A convolution's form: of what it is built, and how its kernel is told."""

    slots: int
    steps: int
    n_in: int
    columns: int
    taps: int
    stride: int
    biases: int
    flags: int

    @property
    def rows(self) -> int:
        """Outputs in time of all slots."""
        return self.slots * (self.steps // self.stride)

    @property
    def depth(self) -> int:
        """Terms of each sum."""
        return self.taps * self.n_in


def conv(
    x: mx.array,
    past: mx.array,
    weight: mx.array,
    bias: mx.array | None,
    stride: int,
    *,
    elu_in: bool = False,
    elu_out: bool = False,
    form: Tile | Rows | None = None,
) -> tuple[mx.array, mx.array]:
    """A strided causal convolution: x [B, T, n_in], past [B, kernel - stride, n_in] -> [B, T / stride, n_out], past.

    `weight` [n_out, kernel, n_in]; `elu_in` activates x (the past is kept activated), `elu_out` what comes out.
    """
    n_out, taps, n_in = weight.shape
    flags = _ELU_IN * elu_in | _ELU_OUT * elu_out
    shape = Shape(x.shape[0], x.shape[1], n_in, n_out, taps, stride, 0 if bias is None else n_out, flags)
    y, *after = _run(shape, x, past, weight, bias, None, None, form, 2 if past.size else 1)
    return y.reshape(x.shape[0], -1, n_out), after[0] if after else past


def conv_transposed(
    x: mx.array,
    last: mx.array,
    weight: mx.array,
    bias: mx.array,
    *,
    elu_in: bool = False,
    elu_out: bool = False,
    form: Tile | Rows | None = None,
) -> tuple[mx.array, mx.array]:
    """A transposed causal convolution of kernel 2 x stride: x [B, T, n_in] -> [B, T x stride, n_out].

    `weight` [2 x stride, n_out, n_in]; `last` [B, 1, n_in], and the next call's, is activated where x is.
    """
    windows, n_out, n_in = weight.shape
    flags = _TRANSPOSED | _ELU_IN * elu_in | _ELU_OUT * elu_out
    shape = Shape(x.shape[0], x.shape[1], n_in, windows // 2 * n_out, 2, 1, n_out, flags)
    y, after = _run(shape, x, last, weight, bias, None, None, form, 2)
    return y.reshape(x.shape[0], -1, n_out), after


def pointwise(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None,
    residual: mx.array | None = None,
    *,
    elu_out: bool = False,
    form: Tile | Rows | None = None,
) -> mx.array:
    """A linear map over channels, x [B, T, n_in] -> [B, T, n_out], added to `residual` [B, T, n_out]."""
    n_out, n_in = weight.shape
    flags = _ELU_OUT * elu_out | _ADDS * (residual is not None)
    shape = Shape(x.shape[0], x.shape[1], n_in, n_out, 1, 1, 0 if bias is None else n_out, flags)
    (y,) = _run(shape, x, x, weight, bias, residual, None, form, 1)
    return y.reshape(x.shape[0], -1, n_out)


def conv_repeated(
    x: mx.array,
    past: mx.array,
    begun: mx.array,
    weight: mx.array,
    stride: int,
    *,
    form: Tile | Rows | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """`conv` without bias whose past, in slots that have not `begun` [B, 1, 1], is the first input over and over.

    Returns y, the past and `begun`, which is true from now on.
    """
    n_out, taps, n_in = weight.shape
    shape = Shape(x.shape[0], x.shape[1], n_in, n_out, taps, stride, 0, _REPEATS)
    y, after, begun = _run(shape, x, past, weight, None, None, begun, form, 3)
    return y.reshape(x.shape[0], -1, n_out), after, begun


def upsample(x: mx.array, last: mx.array, weight: mx.array, *, threads: int = 128) -> mx.array:
    """Channel by channel: x [B, T, channels], last [B, 1, channels] -> [B, T x stride, channels].

    `weight` [2, stride, channels] says how each input sounds in its own outputs and in the next one's.
    """
    slots, steps, channels = x.shape
    stride = weight.shape[1]
    (y,) = _UPSAMPLE(
        [x, last, weight, on_card(slots, steps, channels, stride)],
        [((slots, steps * stride, channels), mx.float32)],
        blocks=min(math.ceil(x.size / threads), 1024),
        threads=threads,
    )
    return y


def _run(
    shape: Shape,
    x: mx.array,
    past: mx.array,
    weight: mx.array,
    bias: mx.array | None,
    residual: mx.array | None,
    begun: mx.array | None,
    form: Tile | Rows | None,
    n_outputs: int,
) -> list[mx.array]:
    largest = max(x.size, shape.rows * shape.columns)
    if largest >= 1 << 31:
        raise BackendError(
            f"{largest} numbers at once are more than a kernel counts; code fewer frames or slots per call"
        )
    form = form or best_form(shape, kernels.multiprocessors())
    # A kernel always has all of its inputs; what is not asked for is not read.
    inputs = [
        x,
        past,
        weight,
        *(weight if given is None else given for given in (bias, residual, begun)),
        on_card(*vars(shape).values()),
    ]
    outputs = [((shape.rows * shape.columns,), mx.float32), (past.shape, mx.float32), ((shape.slots, 1, 1), mx.bool_)]
    if isinstance(form, Tile):
        width = 4 if shape.n_in % 4 == 0 else 1
        constants = {"ROWS": form.rows, "COLUMNS": form.columns, "TM": form.tm, "TN": form.tn, "SLICES": form.slices}
        return _tile(n_outputs)(
            inputs,
            outputs[:n_outputs],
            blocks=form.blocks(shape.rows, shape.columns),
            threads=form.threads,
            **constants,
            N=width,
        )
    rows = 1 << (shape.rows - 1).bit_length()
    return _rows(n_outputs)(
        inputs,
        outputs[:n_outputs],
        blocks=math.ceil(shape.columns * form.split / form.warps),
        threads=32 * form.warps,
        ROWS=rows,
        SPLIT=form.split,
        AHEAD=form.ahead,
        WARPS=form.warps,
    )


@cache
def best_form(shape: Shape, multiprocessors: int) -> Tile | Rows:
    """What should be fastest: for few rows the form that reads weights best, else the tile that is done first."""
    if shape.rows <= MOST_ROWS and shape.n_in % 4 == 0:
        # Sixteen warps on each multiprocessor keep enough reads in flight, and each should have two turns at least.
        split = 1
        while split < 8 and shape.columns * split < 16 * multiprocessors and shape.depth > 256 * split:
            split *= 2
        return Rows(split, ahead=8 if shape.rows <= 4 else 4)
    return min(TILES, key=lambda tile: _cycles(tile, shape, multiprocessors))


def _cycles(tile: Tile, shape: Shape, multiprocessors: int) -> float:
    """About how long a tile takes: arithmetic by what is read from shared memory per sum, and reading through L2."""
    depth = math.ceil(shape.depth / tile.depth) * tile.depth
    per_cycle = 128 * min(1.0, tile.tm * tile.tn / (2.0 * (tile.tm + tile.tn)))
    arithmetic = tile.rows * tile.columns * depth / per_cycle
    reading = (tile.rows + tile.columns) * depth * 4 / 48
    # Blocks of one wave that share a multiprocessor share its arithmetic, not their waiting.
    waves = tile.blocks(shape.rows, shape.columns) / multiprocessors
    return max(1.0, waves) * max(arithmetic, reading) + 2000 * max(1.0, waves / (2048 / tile.threads / 2))


@cache
def _tile(n_outputs: int) -> Kernel:
    call = "conv_tile<ROWS, COLUMNS, TM, TN, SLICES, N>"
    return Kernel(f"conv_tile_{n_outputs}", call, _INPUTS, _OUTPUTS[:n_outputs], _SOURCES)


@cache
def _rows(n_outputs: int) -> Kernel:
    call = "conv_rows<ROWS, SPLIT, AHEAD, WARPS>"
    return Kernel(f"conv_rows_{n_outputs}", call, _INPUTS, _OUTPUTS[:n_outputs], _SOURCES)
