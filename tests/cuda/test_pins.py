"""Pinned keys that follow the window, turned in place, against MLX's own operations: slots share prompts or do not."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from personaplex.cuda.kernel import Kernel
from personaplex.nn.attention import KV, PackedKV, Ring, _packed, _packed_rows
from personaplex.nn.sinks import PromptKeys, Sinks, follow
from tests.cuda.emulator import emulate

PINNED, SHIFT = np.array([5, 0, 3]), np.array([50, 0, 100])
SHARED, DIFFERENT = (0, 1, 0), (0, 1, 2)
"""Which prompt each slot has."""


def rings(packed: bool, dtype: mx.Dtype) -> tuple[Ring, ...]:
    """Of two layers, three slots, two heads and nine rows, with memory of their own."""
    mx.random.seed(3)
    found: list[Ring] = []
    for _ in range(2):
        k, v = (mx.random.normal((3, 2, 9, 64)).astype(dtype) for _ in range(2))
        found.append(PackedKV(*(mx.array(part) for part in _packed(k, v))) if packed else KV(k, v))
    mx.eval(found)
    return tuple(found)


def prompt(number: int, packed: bool, dtype: mx.Dtype) -> PromptKeys:
    """Of two layers: a prompt of a length of its own."""
    read = [
        mx.random.normal((1, 2, 6 + number, 64), key=mx.random.key(10 * number + i)).astype(dtype) for i in range(2)
    ]
    layers = tuple(_packed_rows(keys) if packed else (keys,) for keys in read)
    mx.eval(layers)
    return PromptKeys(layers, dtype)


@pytest.mark.parametrize("of", [SHARED, DIFFERENT])
@pytest.mark.parametrize("read_packed", [False, True])
@pytest.mark.parametrize(
    ("packed", "dtype"), [(False, mx.float32), (False, mx.bfloat16), (True, mx.float32), (True, mx.bfloat16)]
)
def test_they_stand_where_stock_turns_them(
    packed: bool, dtype: mx.Dtype, read_packed: bool, of: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt(number, read_packed, dtype) for number in range(3)]
    sinks = Sinks(tuple(prompts[number] for number in of), mx.zeros((3,), mx.int32))
    launched = Counter[str]()

    def counted(kernel: Kernel, *rest: object) -> list[mx.array]:
        launched[kernel.name] += 1
        return emulate(kernel, *rest)  # type: ignore[arg-type]

    theirs, after = follow(rings(packed, dtype), sinks, PINNED, SHIFT, [0, 2], 10000.0)
    ours = rings(packed, dtype)
    with monkeypatch.context() as patch:
        patch.setenv("PERSONAPLEX_KERNELS", "auto")
        patch.setattr("personaplex.cuda.kernel.launch", counted)
        same, shifted = follow(ours, sinks, PINNED, SHIFT, [0, 2], 10000.0)
    assert same is ours  # in place
    assert launched == {"turn_pins": 1 if of is SHARED else 2}
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


@pytest.mark.parametrize("packed", [False, True])
def test_keys_that_were_read_packed_turn_as_when_they_are_unpacked(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in bfloat16 too: files have them unpacked, and a conversation goes on from those as if it had not."""
    read, found = prompt(0, True, mx.bfloat16), []
    plain = PromptKeys(tuple((keys,) for keys in read.unpacked()), read.dtype)
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto")
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)
    for one in (read, plain):
        ours = rings(packed, mx.bfloat16)
        follow(ours, Sinks((one,) * 3, mx.zeros((3,), mx.int32)), PINNED, SHIFT, [0, 2], 10000.0)
        found.append(ours)
    for mine, other in zip(*found, strict=True):
        assert all(mx.array_equal(*pair) for pair in zip(mine, other, strict=True))
