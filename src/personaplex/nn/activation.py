"""ELU, which Mimi applies to half a million values per frame."""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx

_MANY = 8192
"""Values from which the polynomial's operations cost less than the calls of `exp`."""

_POWERS = (1.0, 0.6931437212, 0.2401801429, 0.05529735831, 0.009205798241, 0.0009449036828)
"""Least-maximum fit of 2^f on (-1, 0] that is exact at 0 (silence stays silence); relative error 1e-7."""


def elu(x: mx.array) -> mx.array:
    """ELU with alpha 1: x, or exp(x) - 1 below zero. exp - 1 is as exact as float32 activations need.

    On a CPU `mx.exp` is one scalar library call per value, longer than the convolution beside it; there, for many
    values, a polynomial in whole-array operations takes its place. (Fused by `mx.compile` alone it is slower.)
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu and x.dtype == mx.float32 and x.size >= _MANY
    below = mx.minimum(x, 0)
    power = cast(mx.array, _exp_below_zero(below)) if on_cpu else mx.exp(below)
    # exp(x) - 1 is never less than x below zero, and is 0 above.
    return mx.maximum(x, power - 1)


@mx.custom_function
def _exp_below_zero(x: mx.array) -> mx.array:
    """exp(x) for x <= 0 in float32: 2^n by adding n to the exponent bits, 2^f by a polynomial."""
    t = mx.maximum(x * math.log2(math.e), -120.0)
    n = t.astype(mx.int32)  # towards zero, so the rest lies in (-1, 0]
    f = t - n
    power = f * _POWERS[-1] + _POWERS[-2]
    for coefficient in _POWERS[-3::-1]:
        power = power * f + coefficient
    return (power.view(mx.int32) + mx.left_shift(n, 23)).view(mx.float32)


@_exp_below_zero.vjp
def _exp_gradient(_: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output
