"""Maps that exist once per stream or codebook, stored stacked: token tables and per-step linear maps."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

ZERO = -1
"""A token whose embedding is exactly zero."""


class TokenTables(nn.Module):
    """Embedding tables [K, rows, dim], one per stream."""

    def __init__(self, n_tables: int, n_rows: int, dim: int) -> None:
        super().__init__()
        self.weight = mx.zeros((n_tables, n_rows, dim))

    def __call__(self, tokens: mx.array, first: int = 0) -> mx.array:
        """tokens [..., n] of tables first ... first + n - 1 -> [..., n, dim]; ZERO gives a zero vector."""
        n_rows = self.weight.shape[1]
        known = tokens >= 0
        index = mx.where(known, tokens, 0) + (first + mx.arange(tokens.shape[-1])) * n_rows
        return mx.where(known[..., None], self._rows(index), 0)

    def _rows(self, index: mx.array) -> mx.array:
        return self.weight.reshape(-1, self.weight.shape[2])[index]

    def to_quantized(self, group_size: int, bits: int, **_: object) -> QuantizedTokenTables:
        """The same tables, packed; called by `mlx.nn.quantize`."""
        return QuantizedTokenTables(self.weight, group_size, bits)


class QuantizedTokenTables(TokenTables):
    """Packed token tables; only the rows looked up are unpacked."""

    def __init__(self, weight: mx.array, group_size: int, bits: int) -> None:
        super().__init__(0, 0, 0)
        self.group_size, self.bits = group_size, bits
        self.weight, self.scales, self.biases = mx.quantize(weight, group_size, bits)

    def _rows(self, index: mx.array) -> mx.array:
        weight, scales, biases = (a.reshape(-1, a.shape[2])[index] for a in (self.weight, self.scales, self.biases))
        return mx.dequantize(weight, scales, biases, group_size=self.group_size, bits=self.bits)


class PerStepLinear(nn.Module):
    """Linear maps [S, out, in] without bias, one per depformer step (reference "multi linear")."""

    def __init__(self, n_steps: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = mx.zeros((n_steps, n_out, n_in))

    def __call__(self, x: mx.array, first: int) -> mx.array:
        """x [N, n, in], its n rows belonging to steps first ... first + n - 1 -> [N, n, out]."""
        steps = slice(first, first + x.shape[1])
        return self._map(x.swapaxes(0, 1), steps).swapaxes(0, 1)

    def _map(self, x: mx.array, steps: slice) -> mx.array:
        return x @ self.weight[steps].swapaxes(1, 2)

    def to_quantized(self, group_size: int, bits: int, **_: object) -> QuantizedPerStepLinear:
        """The same maps, packed; called by `mlx.nn.quantize`."""
        return QuantizedPerStepLinear(self.weight, group_size, bits)


class QuantizedPerStepLinear(PerStepLinear):
    """Packed per-step linear maps."""

    def __init__(self, weight: mx.array, group_size: int, bits: int) -> None:
        super().__init__(0, 0, 0)
        self.group_size, self.bits = group_size, bits
        self.weight, self.scales, self.biases = mx.quantize(weight, group_size, bits)

    def _map(self, x: mx.array, steps: slice) -> mx.array:
        packed = (self.weight[steps], self.scales[steps], self.biases[steps])
        return mx.quantized_matmul(x, *packed, transpose=True, group_size=self.group_size, bits=self.bits)
