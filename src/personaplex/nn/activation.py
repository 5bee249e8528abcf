"""ELU and GELU, which Mimi applies to half a million and to sixty thousand values per frame.

On a CPU `mx.exp` and `mx.erf` are one scalar library call per value, longer than the products beside them. There both
tails are 1 / p^8 of a polynomial, fused where there is a C++ compiler. MLX fuses chains of at most eleven operations,
and building a kernel takes a second (once for a machine): each of the two is written so shallow that it is one kernel.
"""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx
from mlx import nn

from personaplex.nn.few import applies

_MANY = 4096
"""Values from which a polynomial's operations, even unfused, cost about as little as the calls of `exp`."""

_EXP = (1.0, -0.125000212, 0.00781157774, -0.000326648945, 9.64517999e-06, -3.51682525e-07)
"""exp(x) is 1 / p(x)^8 for x <= 0, to 1e-7 (9e-7 as float32 rounds); exact at 0, so that silence stays silence."""

_TAIL = (
    1.09050395,
    0.10881691,
    0.0485572219,
    0.0100185102,
    0.000284887912,
    0.000653644886,
    -9.59281967e-05,
    2.17867705e-05,
)
"""The normal distribution's tail beyond x >= 0 is 1 / p(x)^8; x times it is right to 3e-7 (1e-6 as float32 rounds)."""


def elu(x: mx.array) -> mx.array:
    """ELU with alpha 1: x, or exp(x) - 1 below zero. exp - 1 is as exact as float32 activations need."""
    if applies(x) and x.size >= _MANY:
        return cast(mx.array, _elu(x))
    # exp(x) - 1 is never less than x below zero, and is 0 above.
    return mx.maximum(x, mx.exp(mx.minimum(x, 0)) - 1)


def gelu(x: mx.array) -> mx.array:
    """The exact (erf) GELU."""
    return cast(mx.array, _gelu(x)) if applies(x) else nn.gelu(x)


@mx.custom_function
@mx.compile
def _elu(x: mx.array) -> mx.array:
    return mx.maximum(x, 1 / _eighth_power(_polynomial(mx.minimum(x, 0), _EXP)) - 1)


@_elu.vjp
def _elu_gradient(_: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * (mx.minimum(output, 0) + 1)


@mx.custom_function
@mx.compile
def _gelu(x: mx.array) -> mx.array:
    size = mx.abs(x)
    return mx.maximum(x, 0) - size / _eighth_power(_polynomial(size, _TAIL))


@_gelu.vjp
def _gelu_gradient(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    density = mx.exp(-0.5 * mx.square(x)) * (1 / math.sqrt(2 * math.pi))
    return cotangent * (0.5 * (1 + mx.erf(x * math.sqrt(0.5))) + x * density)


def _polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    """The sum of coefficient k times x^k, of six or eight: pairs first, then pairs of pairs."""
    square = mx.square(x)
    fourth = mx.square(square)
    first, second, third, *rest = (
        x * odd + even for even, odd in zip(coefficients[::2], coefficients[1::2], strict=True)
    )
    return (first + second * square) + ((third + rest[0] * square) if rest else third) * fourth


def _eighth_power(x: mx.array) -> mx.array:
    return mx.square(mx.square(mx.square(x)))
