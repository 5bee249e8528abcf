"""The same arithmetic in fewer operations, for a CPU, where a small operation costs more than its numbers.

MLX's own forms (one kernel each on a GPU) fall apart into a dozen operations there, and 80 ms hold only thousands.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn


def applies(x: mx.array) -> bool:
    """Whether `x` is computed in float32 on a CPU."""
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu


def add_linear(residual: mx.array, linear: nn.Module, x: mx.array) -> mx.array:
    """residual + linear(x); one operation for a plain map of rows [N, n]."""
    if type(linear) is nn.Linear and x.ndim == 2 and "bias" not in linear and applies(x):
        return mx.addmm(residual, x, linear.weight.T)
    return residual + linear(x)


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Scaled dot-product attention, q [B, H, T, D] over k and v [B, H, keys, D]; `mask` as `as_mask` made it."""
    scale = q.shape[-1] ** -0.5
    if not applies(q):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    scores = (q * scale) @ k.swapaxes(2, 3) if mask is None else mx.addmm(mask, q, k.swapaxes(2, 3), alpha=scale)
    return mx.softmax(scores, axis=-1) @ v


def as_mask(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """True where a key is seen, as `attend` wants it for values of `dtype`: on a CPU 0 or minus infinity to add."""
    if dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu:
        return mx.where(seen, 0.0, -mx.inf)
    return seen


class RMSNorm(nn.RMSNorm):
    """RMS norm; the mean of squares is a product with a column of 1 / n."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__(dims, eps)
        self._mean, self._eps = mx.full((dims, 1), 1 / dims), mx.array([[eps]])

    def __call__(self, x: mx.array) -> mx.array:
        if not applies(x):
            return super().__call__(x)
        return x * mx.rsqrt(mx.addmm(self._eps, x * x, self._mean)) * self.weight


class LayerNorm(nn.LayerNorm):
    """Layer norm, its means taken likewise."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims)
        self._mean, self._eps = mx.full((dims, 1), 1 / dims), mx.array([[self.eps]])

    def __call__(self, x: mx.array) -> mx.array:
        if not applies(x):
            return super().__call__(x)
        x = x - x @ self._mean
        return x * mx.rsqrt(mx.addmm(self._eps, x * x, self._mean)) * self.weight + self.bias
