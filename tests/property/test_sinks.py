"""Pinned prompts follow the window: the engine's rings against attention written down pair by pair."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.engine.generator import Generator
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.models.lm import LanguageModel
from personaplex.nn.sinks import STRIDE, due_shift
from personaplex.nn.state import stack
from tests.conftest import WINDOW

PINS = 40


def written_down(lm: LanguageModel, columns: np.ndarray, pinned: int) -> np.ndarray:
    """Columns [T, 17] -> z [T, dim]: every query beside every key, each turned by the angle of their distance."""
    context, head = lm.config.context, lm.config.dim // lm.config.num_heads
    position = np.arange(len(columns))
    shift = due_shift(position, np.full_like(position, pinned), context)
    rates = lm.config.max_period ** (-2 * np.arange(head // 2) / head)
    distance = position[:, None] - position[None]
    seen = (distance >= 0) & ((distance < context) | (position < pinned)[None])
    distance = distance - np.where(position < pinned, shift[:, None], 0)
    turn = np.exp(1j * distance[..., None] * rates)
    x = lm.embed(mx.array(columns)[None])[0]
    for layer in lm.temporal.layers:
        qkv = np.array(layer.attention.in_proj(layer.norm1(x)))
        q, k, v = qkv.reshape(len(columns), 3, lm.config.num_heads, head).swapaxes(0, 1)
        q, k = (np.ascontiguousarray(a).view(np.complex64) for a in (q, k))
        scores = np.einsum("qhd,khd,qkd->hqk", q, k.conj(), turn).real / head**0.5
        weight = np.exp(scores - scores.max(axis=-1, keepdims=True, where=seen, initial=-1e9)) * seen
        heard = np.einsum("hqk,khd->qhd", weight / weight.sum(axis=-1, keepdims=True), v)
        x = layer.scale1(x, layer.attention.out_proj, mx.array(heard.reshape(len(columns), -1).astype(np.float32)))
        x = layer.scale2(x, layer.feedforward.last, layer.feedforward(layer.norm2, x))
    return np.array(lm.out_norm(x))


def test_a_pinned_prompt_stays_as_far_away_as_it_was() -> None:
    folder = ModelFolder(WINDOW)
    lm, sampling = folder.load_lm(dtype=mx.float32), Sampling(text_temperature=0, audio_temperature=0)
    generator = Generator(lm, folder.config, pins=PINS)
    prompts = [compose(folder.config, None, [5, 6, 7, 8]), compose(folder.config, None, list(range(5, 20)))]
    state = stack([generator.open(prompt, sampling=sampling) for prompt in prompts])
    pinned, n_frames = np.array(state.pinned), lm.config.context + 4 * STRIDE
    columns: list[np.ndarray] = []
    zs: list[np.ndarray] = []
    shifts: set[int] = set()
    for _ in range(n_frames):
        state = generator.follow(state)
        shifts |= set(np.array(state.sinks.shift).tolist())
        user = mx.array(np.random.default_rng(len(zs)).integers(0, 90, (2, 8)))
        columns.append(
            np.concatenate(
                [np.array(state.column)[:, :9], np.array(user)[:, :1], np.array(state.column)[:, 10:]], axis=1
            )
        )
        step, state = generator.step(user, state, Ceiling.over(sampling))
        mx.eval(step, state)
        zs.append(np.array(step.hidden))
    assert shifts >= {0, STRIDE, 2 * STRIDE}
    for slot, prompt in enumerate(prompts):
        whole = np.concatenate([prompt.columns, np.stack(columns)[:, slot]])
        expected = written_down(lm, whole, int(pinned[slot]))[-n_frames:]
        np.testing.assert_allclose(np.stack(zs)[:, slot], expected, atol=2e-4)


@pytest.mark.parametrize(
    ("position", "shift"),
    [(0, 0), (61, 0), (60 + STRIDE - 2, 0), (60 + STRIDE - 1, STRIDE), (60 + 9 * STRIDE, 9 * STRIDE)],
)
def test_pinned_tokens_never_come_nearer_than_the_window(position: int, shift: int) -> None:
    assert due_shift(np.array([position]), np.array([20]), 40).tolist() == [shift]
    assert due_shift(np.array([position]), np.array([0]), 40).tolist() == [0]
