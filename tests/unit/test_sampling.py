"""Draws follow the distribution they claim, and depend on nothing else."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex.engine.sampling import Ceiling, Draws, Sampling, frame_keys, penalise, session_key
from personaplex.errors import UsageError
from personaplex.models.streams import UNGENERATED

N = 20_000
LOGITS = np.log(np.array([0.4, 0.25, 0.2, 0.1, 0.05], np.float32))


def drawn(logits: mx.array, position: mx.array, temperature: mx.array, top_k: mx.array, ceiling: int) -> mx.array:
    """One token per slot, at `position` [B] of one session."""
    key, free = mx.broadcast_to(session_key(3), (len(position), 2)), mx.full((len(position), 1), UNGENERATED)
    draws = Draws.open(key, position, range(1), logits.shape[1], temperature, top_k, ceiling)
    return draws.draw(0, logits, free, 0)


def many(temperature: float, top_k: int, ceiling: int) -> np.ndarray:
    """The share of each token in N draws."""
    rows = mx.broadcast_to(mx.array(LOGITS), (N, 5))
    tokens = drawn(rows, mx.arange(N), mx.full((N,), temperature), mx.full((N,), top_k, mx.int32), ceiling)
    return np.bincount(np.array(tokens), minlength=5) / N


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "ceiling"), [(0, 0), (2, 2), (3, 5), (3, 4), (5, 5)])
def test_draws_are_the_tempered_softmax_of_the_k_largest(temperature: float, top_k: int, ceiling: int) -> None:
    weights = np.exp(LOGITS / temperature)
    weights[top_k or 5 :] = 0
    # Four standard deviations of a share near one half.
    assert np.abs(many(temperature, top_k, ceiling) - weights / weights.sum()).max() < 4 * 0.5 / N**0.5


def test_one_candidate_is_the_first_maximum() -> None:
    logits = mx.array([[1.0, 7.0, 7.0, 0.0]])
    one = mx.array([1])
    for ceiling in (1, 3, 0):
        token = drawn(logits, mx.array([0]), mx.array([1.0]), one, ceiling)
        assert token.item() == 1


def test_the_ceiling_never_changes_a_draw() -> None:
    logits = mx.random.normal((64, 300), key=mx.random.key(1))
    k = mx.array([5, 1, 40, 12] * 16)
    temperature = mx.full((64,), 0.8)
    all_drawn = [drawn(logits, mx.arange(64), temperature, k, ceiling).tolist() for ceiling in (40, 41, 299, 300, 0)]
    assert all(d == all_drawn[0] for d in all_drawn)


def test_keys_differ_by_seed_and_by_frame_and_not_by_neighbour() -> None:
    both = mx.concatenate([session_key(1), session_key(2)])
    a = np.array(frame_keys(both, mx.array([0, 5]), 3))
    b = np.array(frame_keys(session_key(2), mx.array([5]), 3))
    assert np.array_equal(a[1:], b)
    seen = {
        tuple(k)
        for s in range(20)
        for p in range(20)
        for k in np.array(frame_keys(session_key(s), mx.array([p]), 3))[0]
    }
    assert len(seen) == 20 * 20 * 3


def test_greedy_and_zero_temperature_are_top_1() -> None:
    assert Ceiling.over(Sampling(greedy=True)) == (1, 1, False)
    assert Ceiling.over(Sampling(text_temperature=0, audio_temperature=0)) == (1, 1, False)
    assert Ceiling.over(Sampling(), Sampling(text_top_k=40, audio_top_k=0)) == (40, 0, False)
    assert Ceiling.over(Sampling(), Sampling(repetition_penalty=1.2)).penalty


def test_no_penalty_unless_asked_for() -> None:
    """A port's penalty of 1.2 on everything, padding included, kept its model from listening."""
    assert Sampling().repetition_penalty == 1
    assert not Ceiling.over(Sampling()).penalty


def test_a_penalty_spares_what_means_silence() -> None:
    logits = mx.array([[2.0, -2.0, 3.0, 1.0, 0.5]])
    recent = mx.array([[0, 1, 3, 3, -1, -1]])
    found = penalise(logits, recent, (3,), mx.array([2.0]))
    assert found.tolist() == [[1.0, -4.0, 3.0, 1.0, 0.5]]
    assert penalise(logits, recent, (3,), mx.array([1.0])).tolist() == logits.tolist()


@pytest.mark.parametrize(
    "bad",
    [{"text_temperature": -1}, {"audio_temperature": float("nan")}, {"text_top_k": -2}, {"repetition_penalty": 0.5}],
)
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        Sampling(**bad)  # type: ignore[arg-type]
