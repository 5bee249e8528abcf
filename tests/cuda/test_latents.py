"""Mimi's transformer in one launch, against MLX's own operations in the same float32."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from personaplex.cuda import latents
from personaplex.cuda.latents import LatentsLayer
from personaplex.nn.attention import KV
from personaplex.nn.transformer import Transformer, TransformerState, codec_stack
from tests.cuda.emulator import SLACK, emulate, fewer

BLOCKS = 5
CONTEXT = 6


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: BLOCKS)
    fewer(monkeypatch, "personaplex.cuda.latents.WARPS", 2)
    latents._kernel.cache_clear()


def network() -> Transformer:
    mx.random.seed(4)
    made = codec_stack(64, 2, 3, 192, 10000.0, CONTEXT, 0.5)
    drawn = tree_map(lambda a: a + mx.random.normal(a.shape) * 0.1, cast(Any, made).parameters())
    made.update(drawn)
    made.eval()
    return made


def by_stock_and_kernel(
    made: Transformer, n_tokens: int, calls: int, monkeypatch: pytest.MonkeyPatch, shares: int
) -> list[tuple[mx.array, mx.array]]:
    """What both give at each call, and at last their rings."""
    layers = [cast(LatentsLayer, layer.latents_weights()) for layer in made.layers]
    state = made.init_state(1, n_tokens)
    rows = state.rings[0].k.shape
    nothing = np.zeros(rows, np.float32)
    ours = TransformerState(tuple(KV(mx.array(nothing), mx.array(nothing)) for _ in layers), state.position)
    mx.eval(ours)
    found = []
    for call in range(calls):
        x = mx.random.normal((n_tokens, 64))
        right, state = made(x[None], state)
        with monkeypatch.context() as patch:
            patch.setattr("personaplex.cuda.kernel.launch", emulate)
            rings = [(ring.k, ring.v) for ring in ours.rings]
            position = mx.array([call * n_tokens], mx.int32)
            found.append((latents.step(x, position, layers, rings, CONTEXT, 10000.0, warps=2, shares=shares), right[0]))
    for mine, theirs in zip(ours.rings, state.rings, strict=True):
        found += [(mine.k, theirs.k), (mine.v, theirs.v)]
    return found


@pytest.mark.parametrize(("n_tokens", "calls", "shares"), [(2, 6, 2), (1, 9, 1)])
def test_the_layers_are_the_layers(n_tokens: int, calls: int, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, at and after the ring's turn, and what lies in the rings."""
    for ours, right in by_stock_and_kernel(network(), n_tokens, calls, monkeypatch, shares):
        assert mx.allclose(ours, right, rtol=1e-4, atol=SLACK * 1e-4), float(mx.abs(ours - right).max())


def test_the_network_chooses_it_for_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    made, launched = network(), []

    def launch(kernel: Any, *rest: Any) -> list[mx.array]:
        launched.append(kernel.name)
        return emulate(kernel, *rest)

    monkeypatch.setattr(latents, "SHARES", 2)
    monkeypatch.setattr(latents.serves, "__kwdefaults__", {"shares": 2})
    monkeypatch.setattr(latents.step, "__kwdefaults__", {"warps": 2, "shares": 2})
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto")
    monkeypatch.setattr("personaplex.cuda.kernel.launch", launch)
    x = mx.random.normal((1, 2, 64))
    _, after = made(x, made.init_state(1, 2))
    assert launched == ["latents", "moved_on_position"]
    assert after.position.tolist() == [2]
    launched.clear()
    made(mx.concatenate([x, x]), made.init_state(2, 2))
    assert "latents" not in launched  # two sessions
    launched.clear()
    made(x[:, :1].astype(mx.bfloat16), made.init_state(1, 1, mx.bfloat16))
    assert "latents" not in launched
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto,no-stack")
    launched.clear()
    made(x, made.init_state(1, 2))
    assert "latents" not in launched


def test_what_it_does_not_take_is_said() -> None:
    layers = [cast(LatentsLayer, layer.latents_weights()) for layer in network().layers]
    assert latents.serves(layers, 2, 2, CONTEXT, shares=2)
    assert not latents.serves(layers, 2, 2, CONTEXT, shares=300)  # more blocks than there are
    assert not latents.serves(layers, 4, 2, CONTEXT, shares=1)  # heads of half a warp
    assert not latents.serves(layers, 2, 3, CONTEXT, shares=2)
    assert not latents.serves(layers, 2, 2, 100_000, shares=2)
