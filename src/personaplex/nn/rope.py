"""Rotary positions on interleaved pairs, with a position per slot (reference rope.py)."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import mlx.core as mx


class Rotation(NamedTuple):
    """How far each token of a call is turned; the same for all layers, so computed once.

    On a GPU `mx.fast.rope` is one kernel and needs only `start` [B]. On a CPU it is some thirty operations per layer;
    there the pairs are read as complex numbers and multiplied by `turn` [B, 1, T, D / 2] complex64.
    """

    start: mx.array
    period: float
    turn: mx.array | None

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, H, T, D] -> the same, turned."""
        if self.turn is None:
            return mx.fast.rope(x, x.shape[-1], traditional=True, base=self.period, scale=1.0, offset=self.start)
        return cast(mx.array, _turned(x, self.turn))


@mx.custom_function
def _turned(x: mx.array, turn: mx.array) -> mx.array:
    pairs = x.astype(mx.float32).view(mx.complex64)
    return (pairs * turn).view(mx.float32).astype(x.dtype)


@_turned.vjp
def _turned_back(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    # A rotation's gradient is the rotation back; the angles are not learned.
    _, turn = primals
    return cast(mx.array, _turned(cotangent, mx.conjugate(turn))), mx.zeros_like(turn)


def open_rotation(position: mx.array, head: int, period: float) -> Rotation:
    """The rotation of tokens at `position` [B, T] for heads of `head` channels."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return Rotation(position[:, 0], period, None)
    rates = mx.exp(mx.arange(head // 2) * (-2 * math.log(period) / head))
    angles = position[:, None, :, None] * rates
    return Rotation(
        position[:, 0], period, mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1).view(mx.complex64)[..., 0]
    )
