"""Pinned keys that follow the window, turned in place, against MLX's own operations."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex.nn.attention import KV, PackedKV, Ring, _packed
from personaplex.nn.sinks import Sinks, follow
from tests.cuda.emulator import emulate

PINNED, SHIFT = np.array([5, 0, 3]), np.array([50, 0, 100])


def rings(packed: bool, dtype: mx.Dtype) -> tuple[Ring, ...]:
    """Of two layers, three slots, two heads and nine rows, with memory of their own."""
    mx.random.seed(3)
    found: list[Ring] = []
    for _ in range(2):
        k, v = (mx.random.normal((3, 2, 9, 64)).astype(dtype) for _ in range(2))
        found.append(PackedKV(*(mx.array(part) for part in _packed(k, v))) if packed else KV(k, v))
    mx.eval(found)
    return tuple(found)


@pytest.mark.parametrize(
    ("packed", "dtype"), [(False, mx.float32), (False, mx.bfloat16), (True, mx.float32), (True, mx.bfloat16)]
)
def test_they_stand_where_stock_turns_them(packed: bool, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tuple(mx.random.normal((3, 2, 6, 64), key=mx.random.key(i)).astype(dtype) for i in range(2))
    sinks = Sinks(keys, mx.zeros((3,), mx.int32))
    theirs, after = follow(rings(packed, dtype), sinks, PINNED, SHIFT, [0, 2], 10000.0)
    ours = rings(packed, dtype)
    with monkeypatch.context() as patch:
        patch.setenv("PERSONAPLEX_KERNELS", "auto")
        patch.setattr("personaplex.cuda.kernel.launch", emulate)
        same, shifted = follow(ours, sinks, PINNED, SHIFT, [0, 2], 10000.0)
    assert same is ours  # in place
    assert shifted.shift.tolist() == after.shift.tolist() == SHIFT.tolist()
    for mine, right, before in zip(ours, theirs, rings(packed, dtype), strict=True):
        for whole, expected, old in zip(
            mine.read(mx.float32), right.read(mx.float32), before.read(mx.float32), strict=True
        ):
            # One rounding of bfloat16 apart at most, or one step of 8 bits.
            room = 2**-7 if dtype == mx.bfloat16 else 1e-5
            assert mx.allclose(whole, expected, rtol=room, atol=4 / 127 if packed else room)
            unlike = np.array(mx.any(mx.abs(whole - old) > 0.2, axis=3)).nonzero()
            assert all(n < PINNED[slot] for slot, n in zip(unlike[0], unlike[2], strict=True))
        assert not mx.allclose(mine.read(mx.float32)[0][0, :, :5], before.read(mx.float32)[0][0, :, :5], atol=0.5)
