"""Linear maps by the tensor cores, and whole layers in one launch, against MLX's own operations in float32."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_map

from personaplex.cuda import stack, tiles
from personaplex.cuda.matrix import LayerWeights, Matrix
from personaplex.cuda.stack import Shape
from personaplex.nn.transformer import Transformer, temporal_stack
from tests.cuda.emulator import emulate, fewer

BLOCKS = 3


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: BLOCKS)
    fewer(monkeypatch, "personaplex.cuda.tiles.WARPS", 2)
    tiles._kernel.cache_clear()
    mx.random.seed(1)


def packed(n_out: int, n_in: int, bits: int, scales: mx.Dtype = mx.bfloat16) -> tuple[Matrix, mx.array]:
    """A weight, and what it is in float32."""
    weight = mx.random.normal((n_out, n_in)) * 0.05
    if bits == 16:
        plain = weight.astype(mx.bfloat16)
        return Matrix(plain), plain.astype(mx.float32)
    words, scale, bias = mx.quantize(weight.astype(scales), 64, bits)
    whole = mx.dequantize(words, scale.astype(mx.float32), bias.astype(mx.float32), group_size=64, bits=bits)
    return Matrix(words, scale, bias, bits), whole


def close(ours: mx.array, exact: mx.array, share: float) -> bool:
    ours, exact = ours.astype(mx.float32), exact.astype(mx.float32)
    return bool(mx.sqrt(mx.square(ours - exact).sum()) <= share * mx.sqrt(mx.square(exact).sum()))


ONE_ROUNDING = 2**-8
"""Of a bfloat16, relative; the norm of many is half of it."""


@pytest.mark.parametrize(
    ("bits", "rows", "n_in", "n_out", "scales"),
    [
        (16, 1, 256, 32, mx.bfloat16),
        (16, 3, 768, 48, mx.bfloat16),
        (8, 2, 768, 32, mx.float32),
        (8, 1, 512, 16, mx.bfloat16),
        (4, 1, 512, 32, mx.float16),
        (4, 8, 768, 16, mx.bfloat16),
        (4, 1, 11264, 16, mx.bfloat16),  # wider than the block's threads lay out at once, and no even number of units
    ],
)
def test_a_linear_map_is_one(bits: int, rows: int, n_in: int, n_out: int, scales: mx.Dtype) -> None:
    weight, exact = packed(n_out, n_in, bits, scales)
    x = mx.random.normal((rows, n_in)).astype(mx.bfloat16)
    assert tiles.fits(weight) and (weight.bits, weight.columns) == (bits, n_in)
    assert close(tiles.linear(x, weight), x.astype(mx.float32) @ exact.T, ONE_ROUNDING)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_norm_before_and_residual_or_gate_after(bits: int) -> None:
    weight, exact = packed(64, 256, bits)
    x, gain = mx.random.normal((2, 256)).astype(mx.bfloat16), (1 + 0.1 * mx.random.normal((256,))).astype(mx.bfloat16)
    normed = mx.fast.rms_norm(x.astype(mx.float32), gain.astype(mx.float32), 1e-8).astype(mx.bfloat16)
    y = (normed.astype(mx.float32) @ exact.T).astype(mx.bfloat16)
    residual = mx.random.normal(y.shape).astype(mx.bfloat16)
    assert close(tiles.linear(x, weight, gain=gain, residual=residual), residual + y, 2 * ONE_ROUNDING)
    gate, value = mx.split(y, 2, axis=-1)
    assert close(tiles.linear(x, weight, gain=gain, gated=True), nn.silu(gate) * value, 2 * ONE_ROUNDING)


def test_what_it_does_not_read_is_said() -> None:
    def fits(n_out: int, n_in: int, dtype: mx.Dtype) -> bool:
        return tiles.fits(Matrix(mx.zeros((n_out, n_in), dtype)))

    assert fits(16, 256, mx.bfloat16)
    assert not fits(16, 256, mx.float32)
    assert not fits(24, 256, mx.bfloat16)
    assert not fits(16, 320, mx.bfloat16)
    for bits, group in ((4, 32), (8, 32), (6, 64), (8, 128)):
        assert not tiles.fits(Matrix(*mx.quantize(mx.zeros((16, 256), mx.bfloat16), group, bits), bits, group)), (
            bits,
            group,
        )


def network(bits: int) -> Transformer:
    made = temporal_stack(256, 2, 3, 512, 10000.0, 5)

    def drawn(a: mx.array) -> mx.array:
        return mx.random.normal(a.shape) * 0.06 if a.ndim == 2 else 1 + 0.1 * mx.random.normal(a.shape)

    parameters = cast(Any, made).parameters()
    made.update(tree_map(lambda a: drawn(a).astype(mx.bfloat16), parameters))
    if bits < 16:
        nn.quantize(made, 64, bits)
    return made


def weights(made: Transformer) -> list[LayerWeights]:
    def of(linear: nn.Module) -> Matrix:
        how = getattr(linear, "bits", 16), getattr(linear, "group_size", 64)
        return Matrix(linear.weight, linear.get("scales"), linear.get("biases"), *how)

    return [
        LayerWeights(
            layer.norm1.weight,
            of(layer.attention.in_proj),
            of(layer.attention.out_proj),
            layer.norm2.weight,
            of(layer.feedforward.linear_in),
            of(layer.feedforward.linear_out),
        )
        for layer in made.layers
    ]


def ring(numbers: np.ndarray) -> mx.array:
    return mx.array(numbers).view(mx.bfloat16)


def in_float32(made: Transformer, bits: int) -> Transformer:
    """The same network with exact sums: what bfloat16 rounds away is then the only difference."""
    exact = temporal_stack(256, 2, 3, 512, 10000.0, 5)

    def whole(module: Any) -> mx.array:
        if bits == 16:
            return cast(mx.array, module.weight.astype(mx.float32))
        scale, bias = module.scales.astype(mx.float32), module.biases.astype(mx.float32)
        return mx.dequantize(module.weight, scale, bias, group_size=64, bits=bits)

    for ours, theirs in zip(exact.layers, made.layers, strict=True):
        for mine, other in zip(cast(Any, ours).modules(), cast(Any, theirs).modules(), strict=True):
            if isinstance(mine, nn.Linear):
                mine.weight = whole(other)
            elif isinstance(mine, nn.RMSNorm):
                mine.weight = other.weight.astype(mx.float32)
    return exact


@pytest.mark.parametrize(("bits", "pin", "steps"), [(16, 0, 8), (4, 2, 9), (8, 1, 3)])
def test_layers_in_one_launch_are_the_layers(bits: int, pin: int, steps: int) -> None:
    """Before, at and after the ring's turn; three layers in two launches; what is pinned stays in view."""
    made = network(bits)
    exact = in_float32(made, bits)
    state = exact.init_state(1, extra_rows=2 if pin else 0)
    n_rows = state.rings[0].k.shape[2]
    nothing = np.zeros((1, 2, n_rows, 128), np.uint16)
    rings = [(ring(nothing), ring(nothing)) for _ in made.layers]
    mx.eval(rings)
    layers, shape = weights(made), Shape(256, 2, 512, n_rows, 5, 10000)
    assert all(stack.serves(layer, shape) for layer in layers)
    pinned = mx.array([pin], mx.int32) if pin else None
    for t in range(steps):
        x = mx.random.normal((1, 1, 256)).astype(mx.bfloat16)
        right, state = exact(x.astype(mx.float32), state, pinned)
        ours = stack.step(
            x[0], mx.array([t], mx.int32), pinned, layers, rings, shape, warps=2, shares=2, layers_per_launch=2
        )
        assert close(ours, right[0], 0.02), t
        for right_ring, (k, v) in zip(state.rings, rings, strict=True):
            assert close(k, right_ring.k, 0.02) and close(v, right_ring.v, 0.02), t


def test_any_number_of_blocks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(16)
    layers, shape, results = weights(made), Shape(256, 2, 512, 5, 5, 10000), []
    x = mx.random.normal((1, 256)).astype(mx.bfloat16)
    for blocks in (1, 4):
        monkeypatch.setattr("personaplex.cuda.kernel.multiprocessors", lambda blocks=blocks: blocks)
        k, v = (mx.random.normal((1, 2, 5, 128), key=mx.random.key(i)).astype(mx.bfloat16) for i in (1, 2))
        mx.eval(k, v)
        rings = [(k, v)] * 3
        results.append(stack.step(x, mx.array([40], mx.int32), None, layers, rings, shape, warps=2, shares=2))
    first, second = results
    assert mx.array_equal(first, second)
