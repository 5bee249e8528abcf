"""Linear maps of rows with the norm before and the gate or residual after them.

On an NVIDIA card each of these is one kernel where the rows are few (a frame of a few conversations); in training, for
many rows, and everywhere else, the operations as they are written here.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from personaplex.cuda import tiles
from personaplex.cuda.kernel import enabled
from personaplex.cuda.matrix import Matrix
from personaplex.cuda.matvec import LAYER_EPS, RMS_EPS, End, Norm, fits, matvec
from personaplex.nn.activation import gelu
from personaplex.nn.few import add_linear


def plain(linear: nn.Module, x: mx.array) -> mx.array:
    """Rows x [N, in] -> linear(x) [N, out]."""
    fast = _by_kernel(x, linear, End.STORE)
    return linear(x) if fast is None else fast


def normed(norm: nn.Module, linear: nn.Module, x: mx.array) -> mx.array:
    """Rows x [N, in] -> linear(norm(x)) [N, out]."""
    fast = _by_kernel(x, linear, End.STORE, norm)
    return linear(norm(x)) if fast is None else fast


def gated(norm: nn.Module, linear: nn.Module, x: mx.array) -> mx.array:
    """Rows x [N, in] -> silu(gate) * value [N, out / 2], the two halves of linear(norm(x))."""
    fast = _by_kernel(x, linear, End.GATE, norm)
    if fast is not None:
        return fast
    gate, value = mx.split(linear(norm(x)), 2, axis=-1)
    return nn.silu(gate) * value


def activated(norm: nn.Module, linear: nn.Module, x: mx.array) -> mx.array:
    """Rows x [N, in] -> gelu(linear(norm(x))) [N, out]."""
    fast = _by_kernel(x, linear, End.GELU, norm)
    return gelu(linear(norm(x))) if fast is None else fast


def added(residual: mx.array, linear: nn.Module, x: mx.array) -> mx.array:
    """Rows x [N, in] -> residual [N, out] + linear(x)."""
    fast = _by_kernel(x, linear, End.ADD, None, residual)
    return add_linear(residual, linear, x) if fast is None else fast


def added_scaled(residual: mx.array, linear: nn.Module, x: mx.array, gain: mx.array) -> mx.array:
    """Rows x [N, in] -> residual [N, out] + linear(x) * gain [out]."""
    fast = _by_kernel(x, linear, End.SCALE, None, residual, gain)
    return residual + linear(x) * gain if fast is None else fast


def _by_kernel(
    x: mx.array,
    linear: nn.Module,
    end: End,
    norm: nn.Module | None = None,
    residual: mx.array | None = None,
    gain: mx.array | None = None,
) -> mx.array | None:
    """The kernel's result, if it is for these rows."""
    weight, before = matrix(linear), None if norm is None else _norm(norm)
    if weight is not None and _for_tiles(x, weight, end, before):
        return tiles.linear(x, weight, gain=before.gain if before else None, residual=residual, gated=end is End.GATE)
    if weight is None or not fits(x, weight, norm=before, end=end, residual=residual, gain=gain):
        return None
    return matvec(x, weight, norm=before, end=end, residual=residual, gain=gain)


def _for_tiles(x: mx.array, weight: Matrix, end: End, norm: Norm | None) -> bool:
    plain_norm = norm is None or norm.shift is None
    few = x.dtype == mx.bfloat16 and x.ndim == 2 and x.shape[0] <= tiles.MOST_ROWS
    halves = 2 if end is End.GATE else 1
    sizes = tiles.fits(weight) and weight.weight.shape[0] % (halves * tiles.TILE) == 0
    sizes = sizes and plain_norm and end in (End.STORE, End.ADD, End.GATE)
    return few and sizes and enabled("tiles")


def matrix(linear: nn.Module) -> Matrix | None:
    """The weights of a plain or packed map without bias that is not being trained."""
    if linear.training or "bias" in linear:
        return None
    if type(linear) is nn.Linear:
        return Matrix(linear.weight)
    if type(linear) is nn.QuantizedLinear and linear.mode == "affine":
        return Matrix(linear.weight, linear.scales, linear.biases, linear.bits, linear.group_size)
    return None


def _norm(norm: nn.Module) -> Norm:
    if isinstance(norm, nn.RMSNorm):
        assert norm.eps == RMS_EPS
        return Norm(norm.weight)
    assert isinstance(norm, nn.LayerNorm) and norm.eps == LAYER_EPS
    return Norm(norm.weight, norm.bias)
