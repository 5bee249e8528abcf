"""Tokens drawn by the kernel are those of the stock path, to the bit; so are the random numbers."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex.cuda.sampling import draw
from personaplex.engine.sampling import Draws
from tests.cuda.emulator import emulate

FREE = -2


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)


def stock(logits: mx.array, noise: mx.array, temperature: mx.array, top_k: mx.array) -> mx.array:
    """What the stock operations draw with this noise."""
    vocabulary = logits.shape[1]
    silenced = mx.where((top_k == 1)[:, None], 0, noise)
    last = mx.where(top_k == 0, 0, mx.maximum(vocabulary - top_k, 0))[:, None]
    return Draws([silenced], temperature[:, None], last, vocabulary).draw(0, logits)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("vocabulary", [5, 300, 2048])
@pytest.mark.parametrize("threads", [32, 96])
def test_draws_are_those_of_the_stock_path(dtype: mx.Dtype, vocabulary: int, threads: int) -> None:
    top_k = mx.array([0, 1, 2, 3, 25, 250, vocabulary - 1, vocabulary, 1 << 30])
    slots = len(top_k)
    temperature = mx.random.uniform(0.3, 2, (slots,), key=mx.random.key(1))
    wanted = mx.full((slots,), FREE, mx.int32)
    for seed, scale in enumerate([0.001, 3, 1e4]):
        logits = (scale * mx.random.normal((slots, vocabulary), key=mx.random.key(seed))).astype(dtype)
        noise = mx.random.gumbel((slots, vocabulary), key=mx.random.key(seed + 100))
        found = draw(logits, noise, temperature, top_k, wanted, FREE, threads=threads)
        assert found.tolist() == stock(logits, noise, temperature, top_k).tolist()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_equals_the_last_of_the_largest_is_kept_and_the_first_of_equals_wins(dtype: mx.Dtype) -> None:
    levels = mx.random.randint(-3, 3, (64, 80), key=mx.random.key(0)).astype(dtype)
    signed = mx.where(mx.random.bernoulli(0.5, (64, 80), key=mx.random.key(1)), levels * 0, levels)
    logits = mx.concatenate([levels, mx.where(levels == 0, -signed, signed)], axis=1)
    top_k = mx.arange(64) + 1
    temperature, wanted = mx.full((64,), 0.7), mx.full((64,), FREE, mx.int32)
    few = mx.random.randint(0, 2, logits.shape, key=mx.random.key(2)).astype(mx.float32)
    for noise in (few, mx.zeros_like(few)):
        found = draw(logits, noise, temperature, top_k, wanted, FREE, threads=64)
        assert found.tolist() == stock(logits, noise, temperature, top_k).tolist()


def test_a_slot_gets_the_token_that_was_wanted_instead() -> None:
    logits = mx.random.normal((3, 40), key=mx.random.key(0))
    noise, temperature, top_k = mx.zeros((3, 40)), mx.ones((3,)), mx.array([1, 1, 1])
    first = np.array(logits).argmax(axis=1)
    found = draw(logits, noise, temperature, top_k, mx.array([FREE, 39, -1]), FREE, threads=32)
    assert found.tolist() == [first[0], 39, -1]


def test_numbers_that_are_none_give_a_token_all_the_same() -> None:
    logits = mx.array([[float("nan")] * 40, [-float("inf")] * 40])
    found = draw(
        logits, mx.zeros((2, 40)), mx.ones((2,)), mx.array([5, 5]), mx.full((2,), FREE, mx.int32), FREE, threads=32
    )
    assert found.tolist() == [0, 0]
