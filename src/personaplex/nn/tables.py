"""Maps that exist once per stream or codebook, stored stacked: token tables and per-step linear maps."""

from __future__ import annotations

from typing import cast

import mlx.core as mx
from mlx import nn

from personaplex.cuda.kernel import enabled
from personaplex.cuda.matrix import Matrix
from personaplex.nn.few import applies

ZERO = -1
"""A token whose embedding is exactly zero."""


@mx.custom_function
def _learned(weight: mx.array, tokens: mx.array) -> mx.array:
    """weight [n, rows, dim], tokens [..., n] -> [..., n, dim]."""
    rows = weight[mx.arange(weight.shape[0]), mx.maximum(tokens, 0)]
    return mx.where((tokens >= 0)[..., None], rows, 0)


@_learned.vjp
def _learned_vjp(primals: list[mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    """A matrix product in place of MLX's scattered additions.

    Most tokens of a call are padding or silence: on a GPU those additions queue up at one row (a training step took ten
    times as long), and in bfloat16 that row's sum stops growing where the next addend is below its last bit.
    """
    weight, tokens = primals
    n_tables, n_rows, dim = weight.shape
    one_hot = [tokens[..., k].reshape(-1, 1) == mx.arange(n_rows) for k in range(n_tables)]
    sums = [hot.astype(weight.dtype).T @ cotangent[..., k, :].reshape(-1, dim) for k, hot in enumerate(one_hot)]
    return mx.stack(sums), mx.zeros_like(tokens)


class TokenTables(nn.Module):
    """Embedding tables [K, rows, dim], one per stream."""

    def __init__(self, n_tables: int, n_rows: int, dim: int) -> None:
        super().__init__()
        self.weight = mx.zeros((n_tables, n_rows, dim))

    def __call__(self, tokens: mx.array, first: int = 0) -> mx.array:
        """tokens [..., n] of tables first ... first + n - 1 -> [..., n, dim]; ZERO gives a zero vector."""
        if self.training:
            return cast(mx.array, _learned(self.weight[first : first + tokens.shape[-1]], tokens))
        starts = mx.array([table * self.weight.shape[1] for table in range(first, first + tokens.shape[-1])], mx.int32)
        rows = self._rows(mx.maximum(tokens, 0) + starts)
        return mx.where((tokens >= 0)[..., None], rows, 0)

    @property
    def matrix(self) -> Matrix:
        """The tables as a kernel takes them."""
        return Matrix(self.weight)

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

    @property
    def matrix(self) -> Matrix:
        return Matrix(self.weight, self.scales, self.biases, self.bits, self.group_size)

    def _rows(self, index: mx.array) -> mx.array:
        weight, scales, biases = (a.reshape(-1, a.shape[2])[index] for a in (self.weight, self.scales, self.biases))
        return mx.dequantize(weight, scales, biases, group_size=self.group_size, bits=self.bits)


class PerStepLinear(nn.Module):
    """Linear maps [S, out, in] without bias, one per depformer step (reference "multi linear")."""

    def __init__(self, n_steps: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = mx.zeros((n_steps, n_out, n_in))
        self._views: list[mx.array] = []
        self._views_of: mx.array | None = None

    def __call__(self, x: mx.array, first: int) -> mx.array:
        """x [N, n, in], its n rows belonging to steps first ... first + n - 1 -> [N, n, out]."""
        steps = slice(first, first + x.shape[1])
        return self._map(x.swapaxes(0, 1), steps).swapaxes(0, 1)

    def one(self, x: mx.array, step: int) -> mx.array:
        """x [N, in] of one step -> [N, out]."""
        return x @ self._transposed()[step]

    def add_one(self, residual: mx.array, x: mx.array, step: int) -> mx.array:
        """residual [N, out] + the map of x [N, in] by one step."""
        if applies(x) or enabled():
            return mx.addmm(residual, x, self._transposed()[step])
        return residual + self.one(x, step)

    def every(self, x: mx.array) -> list[mx.array]:
        """x [N, in] -> what each step makes of it, [N, out] each."""
        n_steps, n_out, n_in = self.weight.shape
        return list(mx.split(x @ self.weight.reshape(n_steps * n_out, n_in).T, n_steps, axis=1))

    @property
    def matrix(self) -> Matrix:
        """The maps as a kernel takes them."""
        return Matrix(self.weight)

    def _transposed(self) -> list[mx.array]:
        """Each step's weight [in, out]: views, made once, because cutting them out takes as long as using them."""
        if self._views_of is not self.weight:
            self._views, self._views_of = [w.T for w in self.weight], self.weight
            mx.eval(self._views)
        return self._views

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

    @property
    def matrix(self) -> Matrix:
        return Matrix(self.weight, self.scales, self.biases, self.bits, self.group_size)

    def _map(self, x: mx.array, steps: slice) -> mx.array:
        packed = (self.weight[steps], self.scales[steps], self.biases[steps])
        return mx.quantized_matmul(x, *packed, transpose=True, group_size=self.group_size, bits=self.bits)

    def one(self, x: mx.array, step: int) -> mx.array:
        return self(x[:, None], step)[:, 0]

    def add_one(self, residual: mx.array, x: mx.array, step: int) -> mx.array:
        return residual + self.one(x, step)

    def every(self, x: mx.array) -> list[mx.array]:
        return [self.one(x, step) for step in range(self.weight.shape[0])]
