"""A few rows times a matrix: every norm, end and packing that the models use, against MLX's own operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_unflatten

from personaplex.config import LMConfig
from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.matrix import Matrix
from personaplex.cuda.matvec import TUNING, End, Norm, Tuning, fits, matvec
from personaplex.models.lm import LanguageModel
from personaplex.nn.state import parameters
from personaplex.nn.transformer import Transformer, codec_stack, temporal_stack
from tests.cuda.emulator import SLACK, emulate, fewer


class Emulated:
    """Kernels are emulated until it is `off`; `ends` says how each map that was run ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends = list[End]()
        monkeypatch.setattr("personaplex.cuda.kernel.launch", self.launch)
        fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: 1)
        # Fewer threads than a card has, which cost an emulator dearly.
        few = {key: (rows, tuning._replace(threads=64, blocks=2)) for key, (rows, tuning) in TUNING.items()}
        fewer(monkeypatch, "personaplex.cuda.matvec.TUNING", few)

    def off(self) -> None:
        kernels.launch = kernels.on_device

    def launch(self, kernel: Kernel, *rest: Any) -> list[mx.array]:
        if kernel.name == "linear":
            self.ends.append(End(rest[-1]["END"]))
        return emulate(kernel, *rest)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    return Emulated(monkeypatch)


F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
STRIPED = Tuning(threads=64, rows=2, unroll=2, blocks=1)
TENSOR = Tuning(threads=64, rows=8, unroll=2, blocks=1, tensor=True)


def normal(shape: tuple[int, ...], dtype: mx.Dtype, seed: int, around: float = 0) -> mx.array:
    return (around + mx.random.normal(shape, key=mx.random.key(seed))).astype(dtype)


UNIT = {F32: 2**-19, F16: 2**-10, BF16: 2**-7}


def close(ours: mx.array, stock: mx.array, unit: float | None = None) -> None:
    """Equal but for one rounding of the largest values, now and then."""
    unit = SLACK * (unit or UNIT[stock.dtype])
    assert ours.dtype == stock.dtype and ours.shape == stock.shape
    a, b = np.array(ours.astype(F32)), np.array(stock.astype(F32))
    assert np.abs(b).max() > 0.1
    assert np.abs(a - b).max() <= unit * np.abs(b).max()
    assert np.abs(a - b).mean() <= unit / 4 * np.abs(b).mean()


def matrix(weight: mx.array, bits: int, group: int) -> tuple[Matrix, Callable[[mx.array], mx.array]]:
    """A weight, and what MLX makes of rows with it."""
    if not bits:
        return Matrix(weight), lambda x: x @ weight.T
    packed, scales, biases = mx.quantize(weight, group, bits)
    # On a CPU MLX's packed product of bfloat16 adds up in bfloat16; a card's does in float32.
    whole = mx.dequantize(packed, scales.astype(F32), biases.astype(F32), group, bits)
    return Matrix(packed, scales, biases, bits, group), lambda x: (x.astype(F32) @ whole.T).astype(x.dtype)


def ended(end: End, y: mx.array, residual: mx.array, gain: mx.array) -> mx.array:
    gate, value = mx.split(y, 2, axis=-1)
    after: dict[End, Callable[[], mx.array]] = {
        End.STORE: lambda: y,
        End.ADD: lambda: residual + y,
        End.GATE: lambda: nn.silu(gate) * value,
        End.GELU: lambda: nn.gelu(y),
        End.SCALE: lambda: residual + y * gain,
    }
    return after[end]()


CASES = [
    # what the temporal transformer does
    ("rms", End.STORE, BF16, 0, 0, 1, TENSOR),
    ("rms", End.GATE, BF16, 0, 0, 2, TENSOR),
    ("", End.ADD, BF16, 0, 0, 3, TENSOR),
    ("", End.STORE, BF16, 0, 0, 8, TENSOR),
    ("rms", End.GATE, F16, 0, 0, 2, STRIPED),
    ("rms", End.STORE, BF16, 8, 64, 1, TENSOR),
    ("rms", End.GATE, BF16, 8, 64, 3, TENSOR),
    ("", End.ADD, BF16, 8, 32, 2, TENSOR),
    ("rms", End.STORE, BF16, 4, 32, 3, TENSOR),
    ("rms", End.GATE, BF16, 4, 64, 1, TENSOR),
    ("", End.ADD, BF16, 4, 32, 4, TENSOR),
    ("rms", End.STORE, F32, 0, 0, 3, STRIPED),
    ("rms", End.GATE, F32, 0, 0, 1, STRIPED),
    ("", End.ADD, F32, 0, 0, 2, STRIPED),
    ("", End.STORE, F32, 4, 32, 3, STRIPED),
    ("rms", End.GATE, F32, 8, 64, 1, STRIPED),
    ("rms", End.GATE, BF16, 0, 0, 2, STRIPED),
    ("", End.ADD, BF16, 8, 64, 1, STRIPED),
    ("rms", End.STORE, BF16, 4, 32, 2, STRIPED),
    # and the codec's
    ("layer", End.STORE, F32, 0, 0, 2, STRIPED),
    ("layer", End.GELU, F32, 0, 0, 3, STRIPED),
    ("", End.SCALE, F32, 0, 0, 2, STRIPED),
    ("layer", End.GELU, BF16, 0, 0, 1, TENSOR),
    ("", End.SCALE, BF16, 0, 0, 1, TENSOR),
]


@pytest.mark.parametrize(("before", "end", "dtype", "bits", "group", "rows", "tuning"), CASES)
def test_a_map_with_what_stands_before_and_after_it(
    before: str, end: End, dtype: mx.Dtype, bits: int, group: int, rows: int, tuning: Tuning
) -> None:
    # Neither a whole number of tiles nor of tasks.
    n_in, n_out = 320, 48
    of, stock = matrix(normal((n_out, n_in), dtype, 1) * n_in**-0.5, bits, group)
    x = normal((rows, n_in), dtype, 2, around=0.5)
    gain, shift = normal((n_in,), dtype, 3, around=1), normal((n_in,), dtype, 4)
    residual, scale = normal((rows, n_out), dtype, 5), normal((n_out,), dtype, 6)
    norm = {"": None, "rms": Norm(gain), "layer": Norm(gain, shift)}[before]
    normed = {
        "": lambda: x,
        "rms": lambda: mx.fast.rms_norm(x, gain, 1e-8),
        "layer": lambda: mx.fast.layer_norm(x, gain, shift, 1e-5),
    }[before]()
    ours = matvec(x, of, norm=norm, end=end, residual=residual, gain=scale, tuning=tuning)
    # The sum of packed values and that of the bias are large and nearly cancel: a few of float32's bits are lost.
    close(ours, ended(end, stock(normed), residual, scale), 2**-14 if bits and dtype == F32 else None)


@pytest.mark.parametrize(
    ("n_in", "n_out", "end", "tuning"),
    [
        (1296, 32, End.ADD, Tuning(256, 2, 4, 2)),  # nano's feed-forward, with the threads of a card
        (320, 96, End.GATE, Tuning(96, 4, 1, 1)),
        (8, 4, End.STORE, Tuning(32, 1, 1, 1)),
        (2048, 6, End.STORE, Tuning(64, 2, 8, 1)),
        (1296, 32, End.ADD, Tuning(256, 8, 4, 3, tensor=True)),
        (320, 96, End.GATE, Tuning(96, 8, 1, 1, tensor=True)),
        (8, 8, End.STORE, Tuning(32, 8, 1, 1, tensor=True)),
        (1024, 16, End.STORE, Tuning(32, 8, 8, 1, tensor=True)),
    ],
)
def test_any_size_and_any_way_of_cutting_it_up(n_in: int, n_out: int, end: End, tuning: Tuning) -> None:
    weight, x = normal((n_out, n_in), BF16, 1) * n_in**-0.5, normal((2, n_in), BF16, 2)
    residual = normal((2, n_out), BF16, 3)
    ours = matvec(x, Matrix(weight), end=end, residual=residual, tuning=tuning)
    close(ours, ended(end, x @ weight.T, residual, residual))


def packed(n_out: int, n_in: int, bits: int, group: int, dtype: mx.Dtype = BF16) -> Matrix:
    return matrix(mx.zeros((n_out, n_in), dtype), bits, group)[0]


def test_what_does_not_fit_is_left_to_mlx(emulated: Emulated) -> None:
    def x(*shape: int) -> mx.array:
        return mx.zeros(shape, BF16)

    plain = Matrix(x(64, 320))
    assert fits(x(1, 320), plain) and fits(x(8, 320), plain, norm=Norm(x(320)), end=End.GATE)
    assert not fits(x(9, 320), plain), "more rows than the table has"
    assert not fits(x(1, 1, 320), plain)
    assert not fits(x(1, 320).astype(F32), plain), "another type"
    assert not fits(x(1, 320), plain, norm=Norm(mx.zeros((320,))))
    assert not fits(x(1, 320), plain, end=End.ADD, residual=mx.zeros((1, 64)))
    assert not fits(x(1, 36), Matrix(x(64, 36))), "rows that are no whole number of 16 bytes"
    assert not fits(x(1, 320), Matrix(x(60, 320))), "rows that are left over"
    assert not fits(mx.zeros((1, 320), mx.int32), Matrix(mx.zeros((64, 320), mx.int32)))
    assert fits(x(2, 320), packed(64, 320, 4, 32)) and fits(x(4, 320), packed(64, 320, 8, 64))
    assert not fits(x(5, 320), packed(64, 320, 4, 32))
    assert not fits(x(1, 384), packed(64, 384, 6, 32)), "bits that no kernel unpacks"
    assert not fits(x(1, 320), packed(64, 320, 4, 32, F32)), "scales of another type"
    assert not fits(x(8, 40000), Matrix(x(8, 40000))), "more than a block's shared memory"
    emulated.off()
    assert not fits(x(1, 320), plain)


def stack(make: Callable[..., Transformer], dtype: mx.Dtype, bits: int | None = None) -> Transformer:
    """A small network of two layers, its weights drawn."""
    more = [0.5] if make is codec_stack else []
    made = make(64, 2, 2, 96, 10000.0, 12, *more)

    def drawn(weight: mx.array) -> mx.array:
        around, spread = (0, 64**-0.5) if weight.ndim == 2 else (1, 0.2)
        return normal(weight.shape, F32, weight.size, around / spread) * spread

    made.update(tree_unflatten([(name, drawn(weight)) for name, weight in parameters(made).items()]))
    if bits:
        nn.quantize(made, 32, bits)
    made.set_dtype(dtype)
    made.eval()
    return made


def stepped(network: Transformer, slots: int, n_tokens: int, dtype: mx.Dtype) -> mx.array:
    """What comes out of two calls, one after the other."""
    state, out = network.init_state(slots, n_tokens, dtype), []
    for call in range(2):
        y, state = network(normal((slots, n_tokens, 64), dtype, call), state)
        out.append(y)
    return mx.concatenate(out, axis=1)


TEMPORAL = [End.STORE, End.ADD, End.GATE, End.ADD]
CODEC = [End.STORE, End.SCALE, End.GELU, End.SCALE]


@pytest.mark.parametrize(
    ("make", "dtype", "bits", "slots", "n_tokens", "ends"),
    [
        (temporal_stack, F32, None, 1, 1, TEMPORAL),
        (temporal_stack, BF16, None, 2, 1, TEMPORAL),
        (temporal_stack, F32, 4, 2, 1, TEMPORAL),
        (codec_stack, F32, None, 1, 2, CODEC),
    ],
)
def test_a_network_steps_as_with_mlxs_own_operations(
    emulated: Emulated,
    make: Callable[..., Transformer],
    dtype: mx.Dtype,
    bits: int | None,
    slots: int,
    n_tokens: int,
    ends: list[End],
) -> None:
    network = stack(make, dtype, bits)
    ours = stepped(network, slots, n_tokens, dtype)
    assert emulated.ends == ends * 2 * 2, "four maps in each of two layers, twice"
    emulated.off()
    unit = 2**-5 if dtype == BF16 else 2**-13 if bits else 2**-18
    close(ours, stepped(network, slots, n_tokens, dtype), unit)


def test_text_is_read_from_z_by_the_kernel(emulated: Emulated) -> None:
    config = LMConfig(dim=64, num_heads=2, num_layers=1, text_card=48, card=8, depformer_dim=64, depformer_num_layers=1)
    lm = LanguageModel(config)
    lm.text_head.weight = normal((48, 64), F32, 1)
    lm.eval()
    z = normal((2, 1, 64), F32, 2)
    logits = lm.text_logits(z)
    assert emulated.ends == [End.STORE] and logits.shape == (2, 1, 48)
    emulated.off()
    close(logits, lm.text_logits(z))


def test_many_rows_and_training_keep_mlxs_own_operations(emulated: Emulated) -> None:
    network = stack(temporal_stack, F32)
    network.whole(normal((3, 3, 64), F32, 1))
    network.train()
    weights = parameters(network)
    x = normal((1, 2, 64), F32, 1)

    def loss(weights: dict[str, mx.array]) -> mx.array:
        network.update(tree_unflatten(list(weights.items())))
        return network.whole(x).sum()

    gradients = mx.grad(loss)(weights)
    assert not emulated.ends
    assert mx.abs(gradients["layers.0.attention.in_proj.weight"]).max().item() != 0
