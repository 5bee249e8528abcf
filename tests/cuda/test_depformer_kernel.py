"""The persistent depformer kernel against the stock steps: logits, codes, forced codes, and any number of blocks."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_map_with_path

from personaplex.config import LMConfig
from personaplex.cuda.depformer import Choice, draw_frame, serves
from personaplex.engine.sampling import Draws, frame_keys, session_key
from personaplex.models.depformer import Depformer
from tests.cuda.emulator import emulate

CONFIG = LMConfig(
    dim=128,
    text_card=40,
    card=104,
    num_heads=2,
    depformer_dim=64,
    depformer_dim_feedforward=132,
    depformer_num_heads=2,
    depformer_num_layers=2,
)
STEPS, DRAW = 8, -2
PRECISIONS = {"float32": (mx.float32, 0), "bfloat16": (mx.bfloat16, 0), "8 bits": (mx.bfloat16, 8), "4 bits": (mx.float32, 4)}


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)


def depformer(precision: str) -> Depformer:
    dtype, bits = PRECISIONS[precision]
    model = Depformer(CONFIG, STEPS)
    keys = iter(mx.random.split(mx.random.key(3), 99))

    def drawn(path: str, old: mx.array) -> mx.array:
        scale = 1 + 0.2 * mx.random.normal(old.shape, key=next(keys))
        if "norm" not in path:
            # Larger than a trained model's, so that logits are as far apart as a trained model's.
            scale = mx.random.normal(old.shape, key=next(keys)) * (1 if "emb" in path else 1.5 * old.shape[-1] ** -0.5)
        return scale.astype(dtype)

    model.update(tree_map_with_path(drawn, model.parameters()))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    model.eval()
    return model


def a_frame(slots: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    z = mx.random.normal((slots, CONFIG.dim), key=mx.random.key(5)).astype(dtype)
    return z, mx.array([7, -1][:slots], mx.int32)


def stock(
    model: Depformer, z: mx.array, text: mx.array, choice: Choice, draws: Draws
) -> tuple[mx.array, mx.array]:
    def choose(step: int, logits: mx.array) -> mx.array:
        given = choice.wanted[:, step]
        return mx.where(given == DRAW, draws.draw(step, logits), given)

    return model.generate(z, text, choose)


def a_choice(slots: int, top_k: list[int], wanted: list[int]) -> tuple[Choice, Draws]:
    temperature, of_slots = mx.array([0.8, 1.3][:slots]), mx.array(top_k, mx.int32)
    keys = frame_keys(mx.concatenate([session_key(seed) for seed in range(slots)]), mx.arange(slots), STEPS)
    draws = Draws.open(keys, CONFIG.card, temperature, of_slots, 0)
    assert draws.noise is not None
    noise = mx.stack(draws.noise, axis=1)
    return Choice(mx.array([wanted] * slots, mx.int32), noise, temperature, of_slots), draws


FREE = [DRAW] * STEPS


def close(ours: mx.array, theirs: mx.array, dtype: mx.Dtype) -> None:
    difference = mx.abs(ours.astype(mx.float32) - theirs.astype(mx.float32)).max().item()
    assert difference < (3e-5 if dtype == mx.float32 else 0.06), difference


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("top_k", [[1], [20]], ids=["greedy", "sampled"])
def test_it_says_what_the_stock_steps_say(precision: str, top_k: list[int]) -> None:
    model = depformer(precision)
    z, text = a_frame(1, PRECISIONS[precision][0])
    choice, draws = a_choice(1, top_k, FREE)
    assert serves(model.weights, z)
    codes, logits, failed = draw_frame(model.weights, z, text, choice, blocks=3, threads=64)
    their_codes, their_logits = stock(model, z, text, choice, draws)
    assert failed.item() == 0
    assert codes.tolist() == their_codes.tolist()
    close(logits, their_logits, z.dtype)
