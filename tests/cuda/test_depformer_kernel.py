"""The persistent depformer kernel against the stock steps: logits, codes, forced codes, any number of blocks."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_map, tree_map_with_path

from personaplex.config import LMConfig
from personaplex.cuda.depformer import Choice, draw_frame, serves
from personaplex.engine.sampling import Draws, frame_keys, session_key
from personaplex.models.depformer import Depformer
from personaplex.models.streams import UNGENERATED
from personaplex.nn.tables import ZERO
from tests.cuda.emulator import emulate

CONFIG = LMConfig(
    dim=1120,
    text_card=40,
    card=40,
    num_heads=2,
    depformer_dim=32,
    depformer_dim_feedforward=96,
    depformer_num_heads=2,
    depformer_num_layers=2,
)
STEPS = 8
FREE = [UNGENERATED] * STEPS
PRECISIONS = {
    "float32": (mx.float32, 0),
    "bfloat16": (mx.bfloat16, 0),
    "8 bits": (mx.bfloat16, 8),
    "4 bits": (mx.bfloat16, 4),
    "float32 in 4 bits": (mx.float32, 4),
}
GRID: dict[str, Any] = {"blocks": 3, "threads": 64}


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)


def depformer(dtype: mx.Dtype, bits: int) -> Depformer:
    model = Depformer(CONFIG, STEPS)
    keys = iter(mx.random.split(mx.random.key(3), 99))

    def drawn(path: str, old: mx.array) -> mx.array:
        numbers = mx.random.normal(old.shape, key=next(keys))
        if "norm" in path:
            return (1 + 0.2 * numbers).astype(dtype)
        return (numbers if "emb" in path else numbers * old.shape[-1] ** -0.5).astype(dtype)

    model.update(tree_map_with_path(drawn, model.parameters()))
    if bits:
        # As checkpoints are: heads plain; tables plain, or in 8 bits.
        def packed(path: str, module: nn.Module) -> bool | dict[str, int]:
            if "norm" in path or "heads" in path or not hasattr(module, "to_quantized"):
                return False
            return bits == 4 and {"group_size": 32, "bits": 8} if "emb" in path else True

        nn.quantize(model, 32, bits, class_predicate=packed)
    model.eval()
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, Depformer]:
    return {name: depformer(*precision) for name, precision in PRECISIONS.items()}


def exactly(model: Depformer) -> Depformer:
    """The same numbers, computed with in float32 and unpacked."""
    plain = Depformer(CONFIG, STEPS)

    def numbers(module: nn.Module) -> mx.array:
        if "scales" not in module:
            return module.weight.astype(mx.float32)
        packed = [module.weight, module.scales.astype(mx.float32), module.biases.astype(mx.float32)]
        return mx.dequantize(*packed, group_size=module.group_size, bits=module.bits)

    theirs = dict(model.named_modules())
    for name, module in plain.named_modules():
        if "weight" in module:
            module.weight = numbers(theirs[name])
    plain.eval()
    return plain


def a_frame(slots: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    z = mx.random.normal((slots, CONFIG.dim), key=mx.random.key(5)).astype(dtype)
    return z, mx.array([7, ZERO][:slots], mx.int32)


def a_choice(top_k: list[int], wanted: list[int]) -> tuple[Choice, Draws]:
    slots = len(top_k)
    temperature, of_slots = mx.array([0.8, 1.3][:slots]), mx.array(top_k, mx.int32)
    keys = frame_keys(mx.concatenate([session_key(seed) for seed in range(slots)]), mx.arange(slots), STEPS)
    draws = Draws.open(keys, CONFIG.card, temperature, of_slots, 0)
    assert draws.noise is not None
    noise = mx.stack(list(draws.noise), axis=1)
    return Choice(mx.array([wanted] * slots, mx.int32), noise, temperature, of_slots), draws


def stock(model: Depformer, z: mx.array, text: mx.array, choice: Choice, draws: Draws) -> tuple[mx.array, mx.array]:
    def choose(step: int, logits: mx.array) -> mx.array:
        given = choice.wanted[:, step]
        return mx.where(given == UNGENERATED, draws.draw(step, logits), given)

    return model.generate(z, text, choose)


def distance(ours: mx.array, theirs: mx.array) -> float:
    return float(mx.sqrt(mx.square(ours.astype(mx.float32) - theirs.astype(mx.float32)).mean()).item())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_says_what_the_stock_steps_say(precision: str, models: dict[str, Depformer]) -> None:
    model, dtype = models[precision], PRECISIONS[precision][0]
    z, text = a_frame(1, dtype)
    choice, draws = a_choice([20], FREE)
    assert serves(model.weights, z)
    codes, logits, failed = draw_frame(model.weights, z, text, choice, **GRID)
    assert failed.item() == 0
    assert logits.dtype == dtype
    assert codes[0].tolist() == [draws.draw(step, logits[:, step]).item() for step in range(STEPS)]
    if dtype == mx.float32:
        their_codes, their_logits = stock(model, z, text, choice, draws)
        assert distance(logits, their_logits) < 2e-6
        assert codes.tolist() == their_codes.tolist()
        return
    # In bfloat16, as near as the stock steps to what float32 gives for the same codes.
    truth = exactly(model).teacher_forced(z.astype(mx.float32), text, codes)
    _, their_logits = stock(model, z, text, choice._replace(wanted=codes), draws)
    ours, theirs = distance(logits, truth), distance(their_logits, truth)
    assert 0 < ours < 1.3 * theirs
    assert ours < 0.01 * distance(truth, mx.zeros_like(truth))


def test_codes_are_kept_where_they_are_known(models: dict[str, Depformer]) -> None:
    model = models["float32"]
    z, text = a_frame(1, mx.float32)
    known = [3, UNGENERATED, ZERO, UNGENERATED, 39, UNGENERATED, UNGENERATED, 0]
    choice, draws = a_choice([0], known)
    codes, logits, _ = draw_frame(model.weights, z, text, choice, **GRID)
    their_codes, their_logits = stock(model, z, text, choice, draws)
    assert codes.tolist() == their_codes.tolist()
    assert all(code == given for code, given in zip(codes.tolist()[0], known, strict=True) if given != UNGENERATED)
    assert distance(logits, their_logits) < 2e-6


def test_two_slots_are_what_each_is_alone(models: dict[str, Depformer]) -> None:
    model = models["float32"]
    z, text = a_frame(2, mx.float32)
    choice, draws = a_choice([20, 1], FREE)
    codes, logits, _ = draw_frame(model.weights, z, text, choice, **GRID)
    their_codes, their_logits = stock(model, z, text, choice, draws)
    assert codes.tolist() == their_codes.tolist()
    assert distance(logits, their_logits) < 2e-6
    alone = draw_frame(model.weights, z[1:], text[1:], Choice(*(of[1:] for of in choice)), **GRID)
    assert mx.array_equal(alone[0], codes[1:]) and mx.array_equal(alone[1], logits[1:])


def test_how_many_blocks_and_what_is_fetched_early_change_nothing(models: dict[str, Depformer]) -> None:
    model = models["4 bits"]
    z, text = a_frame(1, mx.bfloat16)
    choice, _ = a_choice([20], FREE)
    first = draw_frame(model.weights, z, text, choice, **GRID)
    for other in (
        {"blocks": 1, "threads": 32},
        {"blocks": 4, "threads": 96, "rows": 4},
        {"blocks": 2, "threads": 64, "ahead": 0, "early": False},
    ):
        again = draw_frame(model.weights, z, text, choice, **other)
        assert all(mx.array_equal(one, two) for one, two in zip(first, again, strict=True))


def test_the_counters_of_one_launch_serve_the_next(
    models: dict[str, Depformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they must where a compiled step holds them as a constant."""
    model = models["float32"]
    counters = mx.zeros((3,), mx.uint32)
    monkeypatch.setattr("personaplex.cuda.depformer.mx.zeros", lambda *_: counters)
    z, text = a_frame(1, mx.float32)
    choice, _ = a_choice([20], FREE)
    first = draw_frame(model.weights, z, text, choice, **GRID)
    second = draw_frame(model.weights, z, text, choice, blocks=2, threads=64)
    assert counters.tolist() == [0, 0, 0]
    assert all(mx.array_equal(one, two) for one, two in zip(first, second, strict=True))


def test_what_it_cannot_compute_it_does_not_serve(models: dict[str, Depformer]) -> None:
    plain, packed = models["bfloat16"].weights, models["4 bits"].weights
    z, _ = a_frame(1, mx.bfloat16)
    assert serves(plain, z) and serves(packed, z)
    assert not serves(plain, z.astype(mx.float32))
    assert not serves(plain, mx.zeros((5, CONFIG.dim), mx.bfloat16))
    assert not serves(plain, mx.zeros((4, 8192), mx.bfloat16))
    assert not serves(plain._replace(layers=(plain.layers[0], packed.layers[1])), z)
    odd = packed.layers[0]._replace(out_proj=packed.layers[0].out_proj._replace(bits=6))
    assert not serves(packed._replace(layers=(odd,)), z)
    half = tree_map(lambda a: a.astype(mx.float16) if isinstance(a, mx.array) else a, plain)
    assert not serves(half, z.astype(mx.float16))
