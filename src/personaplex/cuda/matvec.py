"""Linear maps of a few rows as one kernel each, with the norm before and the gate or residual after them."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel


class Matrix(NamedTuple):
    """A linear map's weight [out, in]; with `bits` 8 or 4, scales and biases [out, groups] as MLX packs them."""

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    bits: int = 0
    group: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, unpacked."""
        rows, columns = self.weight.shape
        return rows, columns * 32 // self.bits if self.bits else columns

    @property
    def dtype(self) -> mx.Dtype:
        """What x must be of."""
        return self.weight.dtype if self.scales is None else self.scales.dtype


class Norm(NamedTuple):
    """What stands before a map: an RMS norm, or with a `shift` a layer norm, [in] each."""

    gain: mx.array
    shift: mx.array | None = None


RMS_EPS, LAYER_EPS = 1e-8, 1e-5
"""What the kernel's norms add to the mean square, and to the variance."""


class End(IntEnum):
    """What stands after a map: y; residual + y; silu(first half of y) * second half; gelu(y); residual + y * gain."""

    STORE = 0
    ADD = 1
    GATE = 2
    GELU = 3
    SCALE = 4


class Tuning(NamedTuple):
    """How the work is cut up: a warp takes `rows` rows of the weight at once, and `unroll` loads of each ahead.

    `blocks` is how many there are for each of the card's multiprocessors.
    """

    threads: int = 256
    rows: int = 2
    unroll: int = 4
    blocks: int = 2


TUNING = {32: Tuning(), 16: Tuning(), 8: Tuning(), 4: Tuning()}
"""By the bits of a weight."""

MOST_ROWS = {32: 8, 16: 4, 8: 2, 4: 2}
"""Rows of x up to which the kernel is used, likewise; MLX's own products are for more."""

SHARED_BYTES = 227 * 1024
"""What a block can have of a multiprocessor's memory, on cards since Hopper."""

_INPUTS = ("x", "norm_gain", "norm_shift", "weight", "scales", "biases", "residual", "gain")
_CONSTANTS = "T, BITS, GROUP, NORM, END, N_ROWS, N_IN, N_OUT, ROWS, UNROLL, THREADS"
_FLOATS = (mx.float32, mx.bfloat16, mx.float16)


def fits(
    x: mx.array,
    matrix: Matrix,
    *,
    norm: Norm | None = None,
    end: End = End.STORE,
    residual: mx.array | None = None,
    gain: mx.array | None = None,
) -> bool:
    """Whether rows x [N, in] are few enough, and sizes and types such, that `matvec` is to be used for them."""
    if not kernels.enabled() or x.ndim != 2 or x.dtype not in _FLOATS or matrix.bits not in (0, 4, 8):
        return False
    beside = [array for array in (*(norm or ()), residual, gain) if array is not None]
    n_rows, (n_out, n_in) = x.shape[0], matrix.shape
    bits = matrix.bits or 8 * x.dtype.size
    chunk, tuning = 128 // bits, TUNING[bits]
    return (
        n_rows <= MOST_ROWS[bits]
        and all(dtype == x.dtype for dtype in (matrix.dtype, *(array.dtype for array in beside)))
        and n_in % chunk == 0
        and matrix.group % chunk == 0
        and n_out % tuning.rows == 0
        and n_rows * tuning.rows <= 32
        and (end is not End.GATE or tuning.rows % 2 == 0)
        and _shared(n_rows, n_in, chunk, x.dtype, tuning) <= SHARED_BYTES
    )


def matvec(
    x: mx.array,
    matrix: Matrix,
    *,
    norm: Norm | None = None,
    end: End = End.STORE,
    residual: mx.array | None = None,
    gain: mx.array | None = None,
    tuning: Tuning | None = None,
) -> mx.array:
    """Rows x [N, in], normalised -> `end` of their map, [N, out] or [N, out / 2], where it `fits`."""
    n_rows, (n_out, n_in) = x.shape[0], matrix.shape
    bits = matrix.bits or 8 * x.dtype.size
    tuning = tuning or TUNING[bits]
    shared = _shared(n_rows, n_in, 128 // bits, x.dtype, tuning)
    tasks, warps = n_out // tuning.rows, tuning.threads // 32
    given = (norm.gain, norm.shift) if norm else (None, None)
    (out,) = Kernel("linear", f"matvec<{_CONSTANTS}>", _INPUTS, ("out",), ("warp.cuh", "matvec.cuh"), shared)(
        # What is not there is never read, but needs a pointer.
        [x if array is None else array for array in (x, *given, *matrix[:3], residual, gain)],
        [((n_rows, n_out // 2 if end is End.GATE else n_out), x.dtype)],
        blocks=min(tuning.blocks * kernels.multiprocessors(), -(-tasks // warps)),
        threads=tuning.threads,
        T=x.dtype,
        BITS=matrix.bits,
        GROUP=matrix.group,
        NORM=0 if norm is None else 1 if norm.shift is None else 2,
        END=int(end),
        N_ROWS=n_rows,
        N_IN=n_in,
        N_OUT=n_out,
        ROWS=tuning.rows,
        UNROLL=tuning.unroll,
        THREADS=tuning.threads,
    )
    return out


def _shared(n_rows: int, n_in: int, chunk: int, dtype: mx.Dtype, tuning: Tuning) -> int:
    """Bytes of shared memory: x in whole tiles of 32 chunks, a sum for each chunk, two for each warp."""
    tiles = -(-n_in // (32 * chunk))
    return n_rows * (tiles * 32 * chunk * dtype.size + 4 * (n_in // chunk + 2 * tuning.threads // 32))
