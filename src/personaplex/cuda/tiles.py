"""Linear maps of up to eight rows by the tensor cores: for bfloat16 activations, weights of 16, 8 or 4 bits."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.matrix import Matrix

CHUNK = 64
"""Columns that share a scale: MLX's default group."""
LANES = 256
"""Columns come in whole ones of these: a warp lays out as many at a time."""
TILE = 16
"""Rows of weights likewise."""
MOST_ROWS = 8
WARPS = 16

_SCALES = {mx.bfloat16: "__nv_bfloat16", mx.float16: "__half", mx.float32: "float"}


def fits(packed: Matrix) -> bool:
    """Whether a weight has a form that the kernels read."""
    if packed.columns % LANES or packed.weight.shape[0] % TILE:
        return False
    if packed.scales is None:
        return packed.bits == 16 and packed.weight.dtype == mx.bfloat16
    return (
        packed.bits in (4, 8) and packed.group == CHUNK and packed.scales.dtype in _SCALES and packed.biases is not None
    )


def shared_bytes(bits: int, rows: int, columns: int, weight_rows: int, warps: int, blocks: int) -> int:
    """What a block needs: `Shared` in tiles.cuh."""
    sums = -(-rows * (columns + 8) * 2 // 16) * 16
    scratch = sums + (rows * (columns // CHUNK) * 4 if bits < 16 else 0)
    most_tiles = -(-weight_rows // TILE // blocks)
    return -(-(scratch + 128) // 16) * 16 + warps * most_tiles * TILE * rows * 4


def scale_type(packed: Matrix) -> str:
    """The C++ type of its scales; any for a weight that has none."""
    return _SCALES[packed.scales.dtype] if packed.scales is not None else "float"


@cache
def _kernel(
    bits: int, rows: int, columns: int, outputs: int, before: str, after: str, scales: str, warps: int, blocks: int
) -> Kernel:
    inputs = ["given", *(["gain"] if before == "RMS" else []), "w", *(["scales", "biases"] if bits < 16 else [])]
    inputs += ["residual"] if after == "ADD" else []
    none = f"static_cast<const {scales}*>(nullptr)"
    arguments = [name if name in inputs else none if name in ("scales", "biases") else "nullptr" for name in _ARGUMENTS]
    of = f"{bits}, {rows}, {columns}, {outputs}, {warps}, {blocks}, {before}, {after}"
    return Kernel(
        "tile_linear",
        "tile_linear",
        tuple(inputs),
        ("out",),
        ("warp.cuh", "tiles.cuh"),
        shared_bytes(bits, rows, columns, outputs * (2 if after == "GATE" else 1), warps, blocks),
        warps * 32,
        f"tile_linear<{of}>({', '.join(arguments)}, out);",
    )


_ARGUMENTS = ("given", "gain", "w", "scales", "biases", "residual")


def linear(
    x: mx.array, packed: Matrix, *, gain: mx.array | None = None, residual: mx.array | None = None, gated: bool = False
) -> mx.array:
    """Rows x [N, n_in] in bfloat16, N up to 8 -> [N, n_out]; see `fits`.

    With a `gain` x is RMS-normalised first. `residual` [N, n_out] is added; `gated`, the first half of the outputs is
    the gate of the second: silu(gate) * value [N, n_out / 2].
    """
    rows, outputs = x.shape[0], packed.weight.shape[0] // (2 if gated else 1)
    before, after = (
        "RMS" if gain is not None else "PLAIN",
        "GATE" if gated else "ADD" if residual is not None else "STORE",
    )
    kernel = _kernel(
        packed.bits, rows, packed.columns, outputs, before, after, scale_type(packed), WARPS, kernels.multiprocessors()
    )
    given = [x, *([gain] if gain is not None else []), *packed.arrays, *([residual] if residual is not None else [])]
    return kernel(given, [((rows, outputs), mx.bfloat16)], blocks=kernels.multiprocessors(), threads=WARPS * 32)[0]
