"""Tokens drawn by the kernel are those of the stock path, to the bit; so are the random numbers."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex.cuda.kernel import on_card
from personaplex.cuda.sampling import draw
from personaplex.engine.sampling import Draws, frame_noise, session_key, step_entropies
from personaplex.models.streams import UNGENERATED
from tests.cuda.emulator import SLACK, emulate, fewer

THREADS = 64


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)


def by_kernel(
    logits: mx.array, noise: mx.array | None, temperature: mx.array, top_k: mx.array, threads: int = THREADS
) -> object:
    """Draw 1 of `noise` [B, n, V], with nothing wanted."""
    wanted = mx.full((len(logits), 3), UNGENERATED, mx.int32)
    of = (logits, noise, temperature, top_k, wanted)
    return draw(*of, which=1, column=2, free=UNGENERATED, threads=threads).tolist()


def by_stock(
    logits: mx.array, noise: mx.array, temperature: mx.array, top_k: mx.array, monkeypatch: pytest.MonkeyPatch
) -> object:
    """The same by the stock operations."""
    with monkeypatch.context() as patched:
        patched.setattr("personaplex.engine.sampling.enabled", lambda: False)
        patched.setattr("personaplex.engine.sampling.frame_noise", lambda *_: noise)
        key, position = mx.zeros((len(logits), 2), mx.uint32), mx.zeros((len(logits),), mx.int32)
        draws = Draws.open(key, position, range(2), logits.shape[1], temperature, top_k, 0)
        return draws.draw(1, logits, mx.full((len(logits), 3), UNGENERATED, mx.int32), 2).tolist()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("vocabulary", "threads"), [(5, 32), (2048, 96)])
def test_draws_are_those_of_the_stock_path(
    dtype: mx.Dtype, vocabulary: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    top_k = mx.array([0, 1, 2, 3, 25, 250, vocabulary - 1, vocabulary, 1 << 30])
    slots = len(top_k)
    temperature = mx.random.uniform(0.3, 2, (slots,), key=mx.random.key(1))
    for seed, scale in enumerate([0.001, 3, 1e4]):
        logits = (scale * mx.random.normal((slots, vocabulary), key=mx.random.key(seed))).astype(dtype)
        noise = mx.random.gumbel((slots, 2, vocabulary), key=mx.random.key(seed + 100))
        of = (logits, noise, temperature, top_k)
        assert by_kernel(*of, threads) == by_stock(*of, monkeypatch)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_equals_the_last_of_the_largest_is_kept_and_the_first_of_equals_wins(
    dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = mx.random.randint(-3, 3, (64, 160), key=mx.random.key(0)).astype(dtype)
    # Zeros of both signs are equal.
    logits = levels * mx.where(mx.random.bernoulli(0.5, levels.shape, key=mx.random.key(1)), 1, -1).astype(dtype)
    top_k, temperature = mx.arange(64) + 1, mx.full((64,), 0.7)
    few = mx.random.randint(0, 2, (64, 2, 160), key=mx.random.key(2)).astype(mx.float32)
    for noise in (few, mx.zeros_like(few)):
        of = (logits, noise, temperature, top_k)
        assert by_kernel(*of) == by_stock(*of, monkeypatch)


def test_without_noise_everybody_gets_the_first_maximum() -> None:
    logits = mx.random.randint(0, 4, (6, 90), key=mx.random.key(0)).astype(mx.float32)
    found = by_kernel(logits, None, mx.ones((6,)), mx.array([1, 0, 2, 250, 1, 90]))
    assert found == np.array(logits).argmax(axis=1).tolist()


def test_a_slot_gets_the_token_that_was_wanted_instead() -> None:
    logits = mx.random.normal((3, 40), key=mx.random.key(0))
    wanted = mx.array([[7, UNGENERATED], [8, 39], [9, -1]])
    found = draw(logits, None, mx.ones((3,)), mx.array([1, 1, 1]), wanted, which=0, column=1, free=-2, threads=32)
    assert found.tolist() == [np.array(logits)[0].argmax(), 39, -1]


def test_numbers_that_are_none_give_a_token_all_the_same() -> None:
    logits = mx.array([[float("nan")] * 40, [-float("inf")] * 40])
    assert by_kernel(logits, mx.zeros((2, 2, 40)), mx.ones((2,)), mx.array([5, 5])) == [0, 0]


@pytest.mark.parametrize("vocabulary", [1, 515])
@pytest.mark.parametrize("draws", [range(1), range(1, 17)])
def test_random_numbers_are_those_of_mlx_to_the_bit(
    vocabulary: int, draws: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, position = mx.concatenate([session_key(seed) for seed in (0, 5, 1 << 40)]), mx.array([0, 77, 1 << 20])
    found = frame_noise(key, position, draws, vocabulary)
    monkeypatch.setattr("personaplex.engine.sampling.enabled", lambda: False)
    expected = frame_noise(key, position, draws, vocabulary)
    assert found.shape == expected.shape == (3, len(draws), vocabulary)
    if on_card():
        # The same bits and the same formula, of which two compilers may round one operation each in their own way.
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5, atol=1e-5)
    else:
        assert mx.array_equal(found, expected).item()


@pytest.mark.parametrize("steps", [8, 16])
def test_doubt_is_that_of_the_stock_path(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer(monkeypatch, "personaplex.cuda.sampling.DRAW_THREADS", 64)
    text = mx.random.normal((3, 300), key=mx.random.key(0)) * mx.array([[0.0], [3.0], [40.0]])
    audio = 2 * mx.random.normal((3, steps, 40), key=mx.random.key(1)).astype(mx.bfloat16)
    found = step_entropies(text, audio)
    monkeypatch.setattr("personaplex.engine.sampling.enabled", lambda: False)
    np.testing.assert_allclose(np.array(found), np.array(step_entropies(text, audio)), atol=SLACK * 2e-4)
