"""The convolutions' kernels against MLX's own operations: every kind of layer, and every way its state can be cut."""

from __future__ import annotations

import mlx.core as mx
import pytest

from personaplex.cuda.conv import TILES, Rows, Tile, conv, conv_repeated, conv_transposed, pointwise, upsample
from personaplex.nn.activation import elu
from personaplex.nn.conv import CausalConv1d, CausalConvTranspose1d, DepthwiseUpsample, ReplicateDownsample
from tests.conftest import peak_error
from tests.cuda.emulator import SLACK, emulate

CLOSE = SLACK * 2e-6
SMALL = Tile(16, 8, 4, 1, 2)
FORMS = [SMALL, Rows(2, ahead=2, warps=2)]


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)


def noise(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def layer(n_in: int, n_out: int, kernel: int, stride: int) -> CausalConv1d:
    made = CausalConv1d(n_in, n_out, kernel, stride)
    made.weight, made.bias = noise(*made.weight.shape), noise(n_out)
    return made


def stock(made: CausalConv1d | CausalConvTranspose1d, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
    """By MLX's own operations: a module that is being trained has no kernels."""
    y, after = made.train()(x, tail)
    return y, after


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    ("n_in", "n_out", "kernel", "stride", "slots", "cuts"),
    [
        (8, 12, 3, 1, 1, [5, 2]),  # a residual unit's
        (8, 20, 8, 4, 3, [4, 8]),  # down
        (12, 9, 7, 1, 1, [2, 1, 1, 4]),  # calls shorter than the past
        (4, 5, 6, 1, 2, [1, 2, 1]),
        (36, 8, 16, 8, 1, [8, 16]),  # deeper than one tile
    ],
)
def test_a_convolution_and_its_past(
    n_in: int, n_out: int, kernel: int, stride: int, slots: int, cuts: list[int], form: Tile | Rows
) -> None:
    made = layer(n_in, n_out, kernel, stride)
    past = tail = noise(slots, kernel - stride, n_in)
    for steps in cuts:
        x = noise(slots, steps, n_in)
        expected, tail = stock(made, elu(x), tail)
        y, past = conv(x, past, made.weight, made.bias, stride, elu_in=True, elu_out=True, form=form)
        assert peak_error(y, elu(expected)) < CLOSE
        assert past.shape == tail.shape and peak_error(past, tail) < CLOSE


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile(tile: Tile) -> None:
    """Sizes that no tile divides, in time, in channels and in depth."""
    made = layer(12, 37, 7, 1)
    x, tail = noise(1, 75, 12), noise(1, 6, 12)
    expected, after = stock(made, x, tail)
    y, past = conv(x, tail, made.weight, made.bias, 1, form=tile)
    assert peak_error(y, expected) < CLOSE
    assert mx.array_equal(past, after)


@pytest.mark.parametrize("tile", [SMALL, TILES[-1]], ids=str)
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 24), (6, 1)])
def test_channels_that_are_no_multiple_of_four(n_in: int, n_out: int, tile: Tile) -> None:
    made = layer(n_in, n_out, 7, 1)
    x, tail = noise(2, 40, n_in), noise(2, 6, n_in)
    expected, after = stock(made, x, tail)
    y, past = conv(x, tail, made.weight, None, 1, form=tile)
    assert peak_error(y + made.bias, expected) < CLOSE
    assert mx.array_equal(past, after)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("n_in", "n_out", "stride", "slots"), [(12, 6, 4, 1), (40, 3, 5, 3), (8, 4, 2, 1)])
def test_a_transposed_convolution(n_in: int, n_out: int, stride: int, slots: int, form: Tile | Rows) -> None:
    made = CausalConvTranspose1d(n_in, n_out, stride)
    made.weight, made.bias = noise(*made.weight.shape), noise(n_out)
    past = last = noise(slots, 1, n_in)
    for steps in (1, 2):
        x = noise(slots, steps, n_in)
        expected, last = stock(made, elu(x), last)
        y, past = conv_transposed(x, past, made.weight, made.bias, elu_in=True, form=form)
        assert peak_error(y, expected) < CLOSE
        assert peak_error(past, last) < CLOSE


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_linear_map_that_is_added(form: Tile | Rows) -> None:
    x, residual, weight, bias = noise(1, 7, 20), noise(1, 7, 18), noise(18, 20), noise(18)
    expected = residual + x @ weight.T + bias
    assert peak_error(pointwise(x, weight, bias, residual, form=form), expected) < CLOSE
    assert peak_error(pointwise(x, weight, bias, residual, elu_out=True, form=form), elu(expected)) < CLOSE
    assert peak_error(pointwise(x, weight, None, form=form), x @ weight.T) < CLOSE


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_first_input_repeats_in_slots_that_have_not_begun(form: Tile | Rows) -> None:
    made = ReplicateDownsample(12, 2)
    made.conv.weight = noise(*made.conv.weight.shape)
    begun = mx.array([True, False]).reshape(2, 1, 1)
    state = past = noise(2, 2, 12)
    for steps in (2, 4):
        x = noise(2, steps, 12)
        expected, (state, _) = made.train()(x, (state, begun))
        y, past, begun = conv_repeated(x, past, begun, made.conv.weight, 2, form=form)
        assert peak_error(y, expected) < CLOSE
        assert mx.array_equal(past, state)
        assert begun.shape == (2, 1, 1) and begun.all()


def test_every_channel_upsampled() -> None:
    made = DepthwiseUpsample(6, 3)
    made.weight = noise(*made.weight.shape)
    last = noise(2, 1, 6)
    for steps in (1, 3):
        x = noise(2, steps, 6)
        expected, after = made.train()(x, last)
        assert peak_error(upsample(x, last, made.weight, threads=32), expected) < CLOSE
        last = after
