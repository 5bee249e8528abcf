"""What must hold for the codec whatever the sound and however it is cut."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn

from personaplex.models.mimi import Mimi
from personaplex.nn.activation import elu, gelu
from personaplex.nn.conv import CausalConv1d, CausalConvTranspose1d
from personaplex.nn.rope import Rotation, open_rotation
from personaplex.nn.state import extract, parameters, stack
from personaplex.units import FRAME_SAMPLES
from tests.conftest import same

cuts = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def noise(seed: int, frames: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(0, 0.1, (1, frames * FRAME_SAMPLES)).astype(np.float32))


@given(sizes=cuts, seed=st.integers(0, 99))
def test_any_chunking_gives_the_same_codes_and_sound(mimi: Mimi, sizes: list[int], seed: int) -> None:
    pcm = noise(seed, sum(sizes))
    whole = mimi.encode(pcm)
    encoder, decoder, codes, decoded, at = mimi.init_encoder(1), mimi.init_decoder(1), [], [], 0
    for size in sizes:
        code, encoder = mimi.encode_step(pcm[:, at * FRAME_SAMPLES : (at + size) * FRAME_SAMPLES], encoder)
        sound, decoder = mimi.decode_step(whole[:, :, at : at + size], decoder)
        codes.append(code)
        decoded.append(sound)
        at += size
    assert same(mx.concatenate(codes, axis=2), whole)
    reference = mimi.decode(whole)
    assert float(mx.abs(mx.concatenate(decoded, axis=1) - reference).max() / mx.abs(reference).max()) < 1e-5


@given(seed=st.integers(0, 99), cut=st.integers(1, 7))
def test_the_future_never_changes_the_past(mimi: Mimi, seed: int, cut: int) -> None:
    pcm = noise(seed, 8)
    other = mx.concatenate([pcm[:, : cut * FRAME_SAMPLES], noise(seed + 1, 8 - cut)], axis=1)
    assert same(mimi.encode(pcm)[:, :, :cut], mimi.encode(other)[:, :, :cut])
    codes = mimi.encode(pcm)
    changed = mx.concatenate([codes[:, :, :cut], (codes[:, :, cut:] + 1) % 2048], axis=2)
    past = cut * FRAME_SAMPLES
    # The last 1-tap stretch of a frame already overlaps nothing: a causal decoder keeps whole frames.
    assert float(mx.abs(mimi.decode(codes)[:, :past] - mimi.decode(changed)[:, :past]).max()) == 0


@given(seed=st.integers(0, 99), head_start=st.integers(1, 4))
def test_slots_at_different_places_equal_each_alone(mimi: Mimi, seed: int, head_start: int) -> None:
    """The first slot has heard `head_start` frames more than the second, which begins in the middle of its stream."""
    a, b = noise(seed, head_start + 3), noise(seed + 1, 3)
    early, at = mimi.init_encoder(1), head_start * FRAME_SAMPLES
    _, early = mimi.encode_step(a[:, :at], early)
    both = stack([early, mimi.init_encoder(1)])
    codes, both = mimi.encode_step(mx.concatenate([a[:, at:], b]), both)
    assert same(codes[:1], mimi.encode(a)[:, :, head_start:])
    assert same(codes[1:], mimi.encode(b))
    assert extract(both, 1).transformer.position.tolist() == [6]


def test_downsampling_repeats_the_first_latent(mimi: Mimi) -> None:
    """The reference pads this one convolution by replication, all others with zeros."""
    x = mx.random.normal((1, 4, 32), key=mx.random.key(0))
    padded = mx.concatenate([x[:, :1], x[:, :1], x], axis=1)
    expected = mx.conv1d(padded, mimi.downsample.conv.weight, stride=2)
    found, _ = mimi.downsample(x, mimi.downsample.init_state(1))
    assert float(mx.abs(found - expected).max()) < 1e-5


def randomise(module: nn.Module) -> None:
    key = mx.random.key(1)
    module.update({name: mx.random.normal(leaf.shape, key=key) for name, leaf in parameters(module).items()})


def test_elu_is_elu() -> None:
    x = np.concatenate([np.linspace(-100, 5, 20_001), [0.0, -0.0, -1e-9, -1e30, 1e30]]).astype(np.float32)
    reference = np.where(x > 0, x, np.expm1(np.minimum(x, 0).astype(np.float64)))
    found = np.array(elu(mx.array(x)))
    assert np.abs(found - reference)[x < 100].max() < 1e-6
    assert elu(mx.array([0.0])).item() == elu(mx.zeros(10_000)).max().item() == 0


def test_gelu_is_gelu() -> None:
    x = mx.concatenate([mx.linspace(-12, 12, 20_001), mx.array([0.0, -0.0, 1e-9, -1e30, 1e30])])
    found, reference = gelu(x), nn.gelu(x)
    assert float((mx.abs(found - reference) / mx.maximum(1, mx.abs(x))).max()) < 1e-6
    assert gelu(mx.zeros(1)).item() == 0


@pytest.mark.parametrize("ours, reference", [(elu, nn.elu), (gelu, nn.gelu)])
def test_activations_have_the_right_slope(
    ours: Callable[[mx.array], mx.array], reference: Callable[[mx.array], mx.array]
) -> None:
    x = mx.linspace(-9, 9, 10_000)
    slopes = [mx.grad(lambda x, f=f: f(x).sum())(x) for f in (ours, reference)]
    assert float(mx.abs(slopes[0] - slopes[1]).max()) < 2e-6


@pytest.mark.parametrize("kernel, stride, bias", [(3, 1, True), (8, 4, True), (4, 2, False)])
def test_a_convolution_by_taps_is_the_convolution(kernel: int, stride: int, bias: bool) -> None:
    conv = CausalConv1d(16, 24, kernel, stride, bias)
    randomise(conv)
    x, tail = (mx.random.normal((2, n, 16), key=mx.random.key(n)) for n in (40 * stride, kernel - stride))
    for weight in (conv.weight, -conv.weight):  # a new weight is not taken for the old one
        conv.weight = weight
        y, after = conv(x, tail)
        padded = mx.concatenate([tail, x], axis=1)
        reference = mx.conv1d(padded, weight, stride=stride) + (conv.bias if bias else 0)
        assert float(mx.abs(y - reference).max()) < 1e-4 and same(after, padded[:, 40 * stride :])


def test_a_transposed_convolution_is_the_same_in_one_call_and_in_many() -> None:
    """Of the two ways it is computed, many positions take the one and few the other."""
    conv = CausalConvTranspose1d(16, 8, 4)
    randomise(conv)
    x = mx.random.normal((2, 40, 16), key=mx.random.key(2))
    whole, _ = conv(x, conv.init_state(2))
    state, parts = conv.init_state(2), []
    for at in range(0, 40, 2):
        part, state = conv(x[:, at : at + 2], state)
        parts.append(part)
    assert float(mx.abs(mx.concatenate(parts, axis=1) - whole).max()) < 1e-4
    windows = mx.conv_transpose1d(x, conv.weight.transpose(1, 0, 2), stride=4)[:, : 40 * 4]
    assert float(mx.abs(whole - windows - conv.bias).max()) < 1e-4


@given(seed=st.integers(0, 99), start=st.lists(st.integers(0, 100_000), min_size=1, max_size=3))
def test_both_forms_of_rotation_turn_alike(seed: int, start: list[int]) -> None:
    """The CPU's complex product and the GPU's fused kernel, at different positions in each slot."""
    x = mx.random.normal((len(start), 3, 2, 8), key=mx.random.key(seed))
    position = mx.array(start)[:, None] + mx.arange(2)
    rates = mx.exp(mx.arange(4) * (-2 * math.log(1e4) / 8))
    angles = position[:, None, :, None] * rates
    turn = mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1).view(mx.complex64)[..., 0]
    ours, fused = Rotation(position[:, 0], 1e4, turn)(x), Rotation(position[:, 0], 1e4, None)(x)
    # At position 100,000 an angle in float32 is known to some hundredths.
    assert float(mx.abs(ours - fused).max()) < 1e-4 + 1e-6 * max(start)
    opened = open_rotation(position, 8, 1e4)(x)
    assert float(mx.abs(opened - fused).max()) < 1e-4 + 1e-6 * max(start)
