"""Linear maps of a few rows as one kernel each, with the norm before and the gate or residual after them."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.matrix import Matrix


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

    `blocks` is how many there are for each of the card's multiprocessors. On `tensor` cores, which take bfloat16,
    a block's warps share 8 rows.
    """

    threads: int = 256
    rows: int = 2
    unroll: int = 4
    blocks: int = 2
    tensor: bool = False


_TENSOR = Tuning(256, 8, 4, 3, tensor=True)
TUNING = {
    (mx.float32, 32): (8, Tuning(64, 2, 4, 8)),  # the codec's: small, and spread over all multiprocessors
    (mx.bfloat16, 16): (8, _TENSOR),
    (mx.float16, 16): (4, Tuning()),
    (mx.bfloat16, 8): (4, _TENSOR),
    (mx.bfloat16, 4): (4, _TENSOR),
    (mx.float32, 8): (2, Tuning()),
    (mx.float32, 4): (2, Tuning()),
}
"""By the type of x and the bits of a weight: for how many rows of x at most the kernel is used, and how.

What is not here is left to MLX.
"""

SHARED_BYTES = 227 * 1024
"""What a block can have of a multiprocessor's memory, on cards since Hopper."""

_INPUTS = ("x", "norm_gain", "norm_shift", "weight", "scales", "biases", "residual", "gain")
_CONSTANTS = "TENSOR, T, BITS, GROUP, NORM, END, N_ROWS, N_IN, N_OUT, ROWS, UNROLL, THREADS"


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
    bits = matrix.packed[0] or 8 * x.dtype.size
    if not kernels.enabled() or x.ndim != 2 or (x.dtype, bits) not in TUNING:
        return False
    beside = [array for array in (*(norm or ()), residual, gain) if array is not None]
    most_rows, tuning = TUNING[x.dtype, bits]
    n_rows, (n_out, n_in) = x.shape[0], _shape(matrix)
    chunk = 128 // bits
    return (
        n_rows <= most_rows
        and all(dtype == x.dtype for dtype in (matrix.dtype, *(array.dtype for array in beside)))
        and n_in % chunk == 0
        and matrix.packed[1] % chunk == 0
        and n_out % tuning.rows == 0
        and (end is not End.GATE or tuning.rows % 2 == 0)
        and _shared(n_rows, matrix, x.dtype, tuning) <= SHARED_BYTES
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
    n_rows, (n_out, n_in) = x.shape[0], _shape(matrix)
    tuning = tuning or TUNING[x.dtype, (matrix.packed[0] or 8 * x.dtype.size)][1]
    shared = _shared(n_rows, matrix, x.dtype, tuning)
    tasks, at_once = n_out // tuning.rows, 1 if tuning.tensor else tuning.threads // 32
    given = (norm.gain, norm.shift) if norm else (None, None)
    (out,) = Kernel(
        "linear",
        f"matvec<{_CONSTANTS}>",
        _INPUTS,
        ("out",),
        ("warp.cuh", "rows.cuh", "matvec.cuh", "tensor.cuh"),
        shared,
    )(
        # What is not there is never read, but needs a pointer.
        [x if array is None else array for array in (x, *given, *matrix[:3], residual, gain)],
        [((n_rows, n_out // 2 if end is End.GATE else n_out), x.dtype)],
        blocks=min(tuning.blocks * kernels.multiprocessors(), -(-tasks // at_once)),
        threads=tuning.threads,
        TENSOR=tuning.tensor,
        T=x.dtype,
        BITS=matrix.packed[0],
        GROUP=matrix.packed[1],
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


def _shape(matrix: Matrix) -> tuple[int, int]:
    return matrix.weight.shape[0], matrix.columns


def _shared(n_rows: int, matrix: Matrix, dtype: mx.Dtype, tuning: Tuning) -> int:
    """Bytes of shared memory: x in whole tiles, or with a gap behind each row; sums of chunks, of norms, of warps."""
    n_in, warps = _shape(matrix)[1], tuning.threads // 32
    chunk = 128 // (matrix.packed[0] or 8 * dtype.size)
    row = dtype.size * (n_in if tuning.tensor else -(-n_in // (32 * chunk)) * 32 * chunk) + 64
    sums = n_in // chunk if matrix.packed[0] else 0
    partials = 2 * warps * 8 if tuning.tensor else 0
    return 128 + n_rows * (row + 4 * (sums + 2 * warps + partials))
