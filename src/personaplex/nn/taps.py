"""Convolution on a CPU as one product per tap of the kernel, added up in place.

MLX's own convolution there copies its input three times, the last time once per tap; for many positions and few
weights that takes longer than the arithmetic. The products read the input where it lies.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from personaplex.nn.few import applies

_POSITIONS = 16
"""Positions from which the copies cost more than adding up separate products."""
_WEIGHTS = 2**21
"""Largest kernel that is worth a second copy of its weights."""
_TERMS = 16
"""Terms of a sum from which a product is more than the walk over its result."""


class Kept:
    """Contiguous arrays made of one weight, kept for as long as it stays the same array."""

    def __init__(self, make: Callable[[mx.array, int], list[mx.array]]) -> None:
        self._make = make
        self._of: mx.array | None = None
        self._made: list[mx.array] = []

    def __call__(self, weight: mx.array, stride: int) -> list[mx.array]:
        if self._of is not weight:
            self._made, self._of = [mx.contiguous(array) for array in self._make(weight, stride)], weight
            # Now, or a compiled step would make them again in every call.
            mx.eval(self._made)
        return self._made


def by_taps(x: mx.array, positions: int, weight: mx.array) -> bool:
    """Whether `add_taps` is the faster way for this many positions of x under this weight."""
    many = positions >= _POSITIONS and x.shape[2] >= _TERMS
    return many and weight.size <= _WEIGHTS and applies(x)


def add_taps(bias: mx.array | None, x: mx.array, taps: list[mx.array]) -> mx.array:
    """bias [n_out] + the sum over `taps` [n, n_out] of x [B, T + taps - 1, n], one further each -> [B, T, n_out]."""
    positions = x.shape[1] - len(taps) + 1
    y = bias
    for shift, tap in enumerate(taps):
        seen = x[:, shift : shift + positions]
        y = seen @ tap if y is None else mx.addmm(y, seen, tap)
    assert y is not None
    return y
