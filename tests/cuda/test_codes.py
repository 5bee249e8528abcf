"""The depformer's frame by tensor cores against the stock steps: one session in bfloat16, plain or packed."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from personaplex.config import LMConfig
from personaplex.cuda import codes as by_tensor_cores
from personaplex.cuda.depformer import Choice
from personaplex.cuda.kernel import on_card
from personaplex.engine.sampling import Draws, session_key
from personaplex.models.depformer import Depformer
from personaplex.models.streams import UNGENERATED
from tests.cuda.emulator import emulate, fewer
from tests.cuda.test_depformer_kernel import a_frame, choosing, depformer, distance, exactly, keeping, stock

CONFIG = LMConfig(
    dim=512,
    text_card=40,
    card=48,
    num_heads=2,
    depformer_dim=256,
    depformer_dim_feedforward=384,
    depformer_num_heads=4,
    depformer_num_layers=2,
)
STEPS = 3
BLOCKS, WARPS = (None, by_tensor_cores.WARPS) if on_card() else (3, 2)
BITS = {"plain": 0, "8 bits": 8, "4 bits": 4}


@pytest.fixture(autouse=True)
def _stock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "stock")


@pytest.fixture(scope="module")
def models() -> dict[str, Depformer]:
    assert CONFIG.depformer_hidden == 256
    return {name: depformer(mx.bfloat16, bits, CONFIG, STEPS, group=64) for name, bits in BITS.items()}


def a_choice(wanted: list[int], top_k: int = 20) -> tuple[Choice, Draws]:
    sampling = mx.array([0.9]), mx.array([top_k], mx.int32)
    draws = Draws.open(session_key(1), mx.arange(1), range(1, 1 + STEPS), CONFIG.card, *sampling, ceiling=0)
    return draws.choice(mx.pad(mx.array([wanted], mx.int32), [(0, 0), (1, 2)]), 1), draws


def draw(
    model: Depformer, choice: Choice, blocks: int | None = BLOCKS, warps: int = WARPS
) -> tuple[mx.array, mx.array]:
    z, text = a_frame(1, mx.bfloat16, CONFIG.dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personaplex.cuda.kernel.launch", emulate)
        return by_tensor_cores.draw_frame(model.weights, z, text, choice, blocks=blocks, warps=warps)


@pytest.mark.parametrize("precision", BITS)
def test_it_says_what_the_stock_steps_say(precision: str, models: dict[str, Depformer]) -> None:
    model = models[precision]
    z, text = a_frame(1, mx.bfloat16, CONFIG.dim)
    choice, draws = a_choice([UNGENERATED] * STEPS)
    assert by_tensor_cores.serves(model.weights, z)
    codes, logits = draw(model, choice)
    drawn = [choosing(choice, draws)(step, logits[:, step]) for step in range(STEPS)]
    assert codes.tolist() == mx.stack(drawn, axis=1).tolist()
    # As near as the stock steps to what float32 gives for the same codes.
    truth = exactly(model, CONFIG, STEPS).teacher_forced(z.astype(mx.float32), text, codes)
    _, their_logits = stock(model, z, text, keeping(choice, codes), draws)
    ours, theirs = distance(logits, truth), distance(their_logits, truth)
    assert 0 < ours < 1.3 * theirs
    assert ours < 0.01 * distance(truth, mx.zeros_like(truth))


def test_codes_are_kept_where_they_are_known(models: dict[str, Depformer]) -> None:
    free = draw(models["plain"], a_choice([UNGENERATED] * STEPS, 1)[0])
    known = draw(models["plain"], a_choice([UNGENERATED, 5, UNGENERATED], 1)[0])
    assert known[0][0, 0].item() == free[0][0, 0].item() and known[0][0, 1].item() == 5
    assert mx.array_equal(known[1][:, :2], free[1][:, :2]) and not mx.array_equal(known[1][:, 2], free[1][:, 2])


def test_any_number_of_blocks_and_warps_gives_the_same(models: dict[str, Depformer]) -> None:
    choice, _ = a_choice([UNGENERATED] * STEPS)
    first = draw(models["4 bits"], choice)
    again = draw(models["4 bits"], choice, blocks=20)  # more than some maps have tiles
    assert all(mx.array_equal(one, two) for one, two in zip(first, again, strict=True))
    # Sums in another order.
    assert distance(draw(models["4 bits"], choice, warps=3)[1], first[1]) < 0.015


def test_the_model_uses_it_where_it_serves(models: dict[str, Depformer], monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def launch(kernel, *rest):  # type: ignore[no-untyped-def]
        launched.append(kernel.name)
        return emulate(kernel, *rest)

    z, text = a_frame(1, mx.bfloat16, CONFIG.dim)
    choice, draws = a_choice([UNGENERATED] * STEPS)
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto")
    monkeypatch.setattr("personaplex.cuda.kernel.launch", launch)
    fewer(monkeypatch, "personaplex.cuda.codes.WARPS", 2)
    monkeypatch.setattr(by_tensor_cores.draw_frame, "__kwdefaults__", {"blocks": None, "warps": WARPS})
    models["plain"].generate(z, text, choosing(choice, draws), choice)
    assert launched == ["codes_of_frame"]
    weights = models["4 bits"].weights
    assert not by_tensor_cores.serves(weights, mx.concatenate([z, z]))
    assert not by_tensor_cores.serves(weights, z.astype(mx.float32))
    assert not by_tensor_cores.serves(weights._replace(heads=weights.heads._replace(bits=8, scales=z)), z)
    of_32 = depformer(mx.bfloat16, 4, replace(CONFIG, depformer_num_layers=1), STEPS)
    assert not by_tensor_cores.serves(of_32.weights, z)
