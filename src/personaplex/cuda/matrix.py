"""Weights as the kernels take them: plain, or as `mx.quantize` packs them."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Matrix(NamedTuple):
    """A map or table [..., rows, columns]; packed, with scales and biases for each `group` of columns in `bits`."""

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    bits: int = 16
    group: int = 64

    @property
    def arrays(self) -> list[mx.array]:
        """What a kernel is given of it."""
        return [array for array in (self.weight, self.scales, self.biases) if array is not None]

    @property
    def packing(self) -> tuple[int, int]:
        """Bits and group; the same for everything plain."""
        return (16, 64) if self.scales is None else (self.bits, self.group)

    @property
    def packed(self) -> tuple[int, int]:
        """Bits and group; (0, 0) for what is plain."""
        return (0, 0) if self.scales is None else (self.bits, self.group)

    @property
    def columns(self) -> int:
        """Unpacked."""
        return self.weight.shape[-1] if self.scales is None else self.scales.shape[-1] * self.group

    @property
    def dtype(self) -> mx.Dtype:
        """The type of what comes out."""
        return self.weight.dtype if self.scales is None else self.scales.dtype


class LayerWeights(NamedTuple):
    """A transformer's layer: the norms' gains [dim] and four maps, for each step [S, out, in] in the depformer."""

    norm1: mx.array
    in_proj: Matrix
    out_proj: Matrix
    norm2: mx.array
    linear_in: Matrix
    linear_out: Matrix

    @property
    def arrays(self) -> list[mx.array]:
        """What a kernel is given of it, in this order."""
        return [array for of in self for array in (of.arrays if isinstance(of, Matrix) else [of])]
