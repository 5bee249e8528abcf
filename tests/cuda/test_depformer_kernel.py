"""The persistent depformer kernel against the stock steps: logits, codes, forced codes, any number of blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_map, tree_map_with_path

from personaplex.checkpoint.folder import ModelFolder
from personaplex.config import LMConfig
from personaplex.cuda import ring
from personaplex.cuda.depformer import Choice, Tuning, draw_frame, serves
from personaplex.cuda.kernel import Kernel, on_card
from personaplex.cuda.matrix import Matrix
from personaplex.engine.generator import Generator
from personaplex.engine.sampling import Ceiling, Draws, Sampling, session_key
from personaplex.models.depformer import Depformer
from personaplex.models.streams import UNGENERATED
from personaplex.nn.state import arrays, stack
from personaplex.nn.tables import ZERO
from personaplex.units import N_CODEBOOKS
from tests.conftest import WINDOW
from tests.cuda.emulator import SLACK, emulate, fewer

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
STEPS = 5
FREE = [UNGENERATED] * STEPS
PRECISIONS = {
    "float32": (mx.float32, 0),
    "bfloat16": (mx.bfloat16, 0),
    "8 bits": (mx.bfloat16, 8),
    "4 bits": (mx.bfloat16, 4),
    "float32 in 4 bits": (mx.float32, 4),
}
EXACT = SLACK * 2e-6
"""How far float32's logits may be apart, of which each is about 1."""
AS_NEAR = 1.3 if SLACK == 1 else 2
"""How much further than MLX's bfloat16 from float32 ours may be."""
BLOCKS, SMALL = (None, None) if on_card() else (3, Tuning(threads=64))
"""An emulator's; a card has its own."""


@pytest.fixture(autouse=True)
def _stock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "stock")


@contextmanager
def kernels() -> Iterator[None]:
    """Everything by kernels, emulated, small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personaplex.cuda.kernel.launch", emulate)
        fewer(patch, "personaplex.cuda.sampling.DRAW_THREADS", 32)
        fewer(patch, "personaplex.cuda.sampling.NOISE_THREADS", 32)
        fewer(patch, "personaplex.cuda.ring.DEFAULT", ring.Tuning(threads=32, rows=2, fewest=4, splits=2))
        patch.setattr("personaplex.models.depformer.draw_frame", partial(draw_frame, blocks=BLOCKS, tuning=SMALL))
        yield


def by_kernel(
    model: Depformer,
    z: mx.array,
    text: mx.array,
    choice: Choice,
    blocks: int | None = BLOCKS,
    tuning: Tuning | None = SMALL,
) -> tuple[mx.array, mx.array]:
    with kernels():
        return draw_frame(model.weights, z, text, choice, blocks=blocks, tuning=tuning)


def depformer(dtype: mx.Dtype, bits: int, config: LMConfig = CONFIG, steps: int = STEPS, group: int = 32) -> Depformer:
    model = Depformer(config, steps)
    keys = iter(mx.random.split(mx.random.key(3), 99))

    def drawn(path: str, old: mx.array) -> mx.array:
        numbers = mx.random.normal(old.shape, key=next(keys))
        if "norm" in path:
            return (1 + 0.2 * numbers).astype(dtype)
        return (numbers if "emb" in path else numbers * old.shape[-1] ** -0.5).astype(dtype)

    model.update(tree_map_with_path(drawn, model.parameters()))  # type: ignore[no-untyped-call]
    if bits:
        # As checkpoints are: heads plain; tables plain, or in 8 bits.
        def packed(path: str, module: nn.Module) -> bool | dict[str, int]:
            if "norm" in path or "heads" in path or not hasattr(module, "to_quantized"):
                return False
            return bits == 4 and {"group_size": group, "bits": 8} if "emb" in path else True

        nn.quantize(model, group, bits, class_predicate=packed)
    model.eval()
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, Depformer]:
    return {name: depformer(*precision) for name, precision in PRECISIONS.items()}


def exactly(model: Depformer, config: LMConfig = CONFIG, steps: int = STEPS) -> Depformer:
    """The same numbers, computed with in float32 and unpacked."""
    plain = Depformer(config, steps)

    def numbers(matrix: Matrix) -> mx.array:
        weight, *packed = matrix.arrays
        if not packed:
            return weight.astype(mx.float32)
        scales, biases = (one.astype(mx.float32) for one in packed)
        return mx.dequantize(weight, scales, biases, group_size=matrix.group, bits=matrix.bits)

    pairs = zip(plain.modules(), model.modules(), strict=True)  # type: ignore[no-untyped-call]
    for ours, theirs in pairs:
        if "weight" in ours:
            ours.weight = numbers(theirs.matrix) if hasattr(theirs, "matrix") else theirs.weight.astype(mx.float32)
    plain.eval()
    return plain


def a_frame(slots: int, dtype: mx.Dtype, dim: int = CONFIG.dim) -> tuple[mx.array, mx.array]:
    z = mx.random.normal((slots, dim), key=mx.random.key(5)).astype(dtype)
    return z, mx.array([7, ZERO][:slots], mx.int32)


def a_choice(top_k: list[int], wanted: list[int]) -> tuple[Choice, Draws]:
    """With the codes wanted in some columns of a wider array, as they are in a step."""
    slots = len(top_k)
    keys = mx.concatenate([session_key(seed) for seed in range(slots)])
    sampling = 0.8 + 0.5 * mx.arange(slots), mx.array(top_k, mx.int32)
    draws = Draws.open(keys, mx.arange(slots), range(1, 1 + STEPS), CONFIG.card, *sampling, ceiling=0)
    codes = mx.broadcast_to(mx.array(wanted, mx.int32), (slots, STEPS))
    return draws.choice(mx.pad(codes, [(0, 0), (1, 2)]), 1), draws


def choosing(choice: Choice, draws: Draws) -> Callable[[int, mx.array], mx.array]:
    return lambda step, logits: draws.draw(step, logits, choice.wanted, choice.column + step)


def stock(model: Depformer, z: mx.array, text: mx.array, choice: Choice, draws: Draws) -> tuple[mx.array, mx.array]:
    return model.generate(z, text, choosing(choice, draws))


def keeping(choice: Choice, codes: mx.array) -> Choice:
    return choice._replace(wanted=mx.pad(codes, [(0, 0), (1, 2)]))


def of_slot(choice: Choice, slot: int) -> Choice:
    mine = slice(slot, slot + 1)
    assert choice.noise is not None
    return Choice(choice.wanted[mine], choice.column, choice.noise[mine], choice.temperature[mine], choice.top_k[mine])


def distance(ours: mx.array, theirs: mx.array) -> float:
    difference = ours.astype(mx.float32) - theirs.astype(mx.float32)
    return cast(float, mx.sqrt(mx.square(difference).mean()).item())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_says_what_the_stock_steps_say(precision: str, models: dict[str, Depformer]) -> None:
    model, dtype = models[precision], PRECISIONS[precision][0]
    z, text = a_frame(1, dtype)
    choice, draws = a_choice([20], FREE)
    assert serves(model.weights, z)
    codes, logits = by_kernel(model, z, text, choice)
    assert logits.dtype == dtype
    drawn = [choosing(choice, draws)(step, logits[:, step]) for step in range(STEPS)]
    assert codes.tolist() == mx.stack(drawn, axis=1).tolist()
    if dtype == mx.float32:
        their_codes, their_logits = stock(model, z, text, choice, draws)
        assert distance(logits, their_logits) < EXACT
        assert codes.tolist() == their_codes.tolist()
        return
    # In bfloat16, as near as the stock steps to what float32 gives for the same codes.
    truth = exactly(model).teacher_forced(z.astype(mx.float32), text, codes)
    _, their_logits = stock(model, z, text, keeping(choice, codes), draws)
    ours, theirs = distance(logits, truth), distance(their_logits, truth)
    assert 0 < ours < AS_NEAR * theirs
    assert ours < 0.01 * distance(truth, mx.zeros_like(truth))


def test_codes_are_kept_where_they_are_known(models: dict[str, Depformer]) -> None:
    model = models["float32"]
    z, text = a_frame(1, mx.float32)
    known = [3, UNGENERATED, ZERO, 39, UNGENERATED]
    choice, draws = a_choice([0], known)
    codes, logits = by_kernel(model, z, text, choice)
    their_codes, their_logits = stock(model, z, text, choice, draws)
    assert codes.tolist() == their_codes.tolist()
    said = cast("list[list[int]]", codes.tolist())[0]
    assert all(code == given for code, given in zip(said, known, strict=True) if given != UNGENERATED)
    assert distance(logits, their_logits) < EXACT


def test_two_slots_are_what_each_is_alone(models: dict[str, Depformer]) -> None:
    model = models["float32"]
    z, text = a_frame(2, mx.float32)
    choice, draws = a_choice([20, 1], FREE)
    codes, logits = by_kernel(model, z, text, choice)
    their_codes, their_logits = stock(model, z, text, choice, draws)
    assert codes.tolist() == their_codes.tolist()
    assert distance(logits, their_logits) < EXACT
    alone = by_kernel(model, z[1:], text[1:], of_slot(choice, 1))
    assert mx.array_equal(alone[0], codes[1:]) and mx.array_equal(alone[1], logits[1:])


def test_how_many_blocks_and_what_is_fetched_early_change_nothing(models: dict[str, Depformer]) -> None:
    model = models["4 bits"]
    z, text = a_frame(1, mx.bfloat16)
    choice, _ = a_choice([20], FREE)
    first = by_kernel(model, z, text, choice)
    others = [
        (33, Tuning(threads=32, ahead=0, early=False)),  # more blocks than some matrices have rows
        (2, Tuning(threads=96, rows=4, pairs=2, whole=1)),
    ]
    for blocks, tuning in others:
        again = by_kernel(model, z, text, choice, blocks, tuning)
        assert all(mx.array_equal(one, two) for one, two in zip(first, again, strict=True))


def test_the_counters_of_one_launch_serve_the_next(
    models: dict[str, Depformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they must where a compiled step holds them as a constant."""
    model = models["float32"]
    counters = mx.zeros((64,), mx.uint32)
    monkeypatch.setattr("personaplex.cuda.depformer.mx.zeros", lambda *_: counters)
    z, text = a_frame(1, mx.float32)
    choice, _ = a_choice([20], FREE)
    first = by_kernel(model, z, text, choice)
    second = by_kernel(model, z, text, choice, blocks=2)
    assert counters.tolist() == [0] * 64
    assert all(mx.array_equal(one, two) for one, two in zip(first, second, strict=True))


def test_the_model_uses_it_where_a_choice_can_be_said_as_numbers(models: dict[str, Depformer]) -> None:
    model = models["float32"]
    z, text = a_frame(1, mx.float32)
    choice, draws = a_choice([1], FREE)
    asked = []

    def choose(step: int, logits: mx.array) -> mx.array:
        asked.append(step)
        return choosing(choice, draws)(step, logits)

    with kernels():
        codes, logits = model.generate(z, text, choose, choice._replace(noise=None))
    assert not asked
    their_codes, their_logits = model.generate(z, text, choose, choice)
    assert asked == list(range(STEPS))
    assert codes.tolist() == their_codes.tolist()
    assert distance(logits, their_logits) < EXACT


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "8 bits"])
def test_many_slots_go_step_by_step_in_few_kernels(precision: str, models: dict[str, Depformer]) -> None:
    model, dtype, slots = models[precision], PRECISIONS[precision][0], 9
    z = mx.random.normal((slots, CONFIG.dim), key=mx.random.key(6)).astype(dtype)
    text = mx.arange(slots, dtype=mx.int32)
    choice, draws = a_choice([20] * slots, FREE)
    assert not serves(model.weights, z)
    with kernels():
        codes, logits = model.generate(z, text, choosing(choice, draws), choice)
    their_codes, their_logits = stock(model, z, text, keeping(choice, codes), draws)
    assert codes.tolist() == their_codes.tolist()
    if dtype == mx.float32:
        assert distance(logits, their_logits) < EXACT
    else:
        truth = exactly(model).teacher_forced(z.astype(mx.float32), text, codes)
        ours, theirs = distance(logits, truth), distance(their_logits, truth)
        assert 0 < ours < AS_NEAR * theirs


def test_a_whole_step_launches_it_once_and_not_with_a_penalty() -> None:
    folder = ModelFolder(WINDOW)
    lm = folder.load_lm(dtype=mx.float32)
    wide = replace(folder.config.lm, depformer_dim=32, depformer_dim_feedforward=96)
    lm.depformer = depformer(mx.float32, 0, wide, N_CODEBOOKS)
    generator = Generator(lm, folder.config)
    launched: Counter[str] = Counter()

    def counted(kernel: Kernel, *rest: Any) -> list[mx.array]:
        launched[kernel.name] += 1
        return emulate(kernel, *rest)

    def steps(choices: list[Sampling]) -> list[Any]:
        opened = [generator.begin(None, seed=seed, sampling=choice)[1] for seed, choice in enumerate(choices)]
        state, heard = stack(opened), []
        for n in range(2):
            # One slot's semantic code is known, and the other's acoustic codes from the third on.
            forced = mx.array(
                [[UNGENERATED, 9, *[UNGENERATED] * 15], [*[UNGENERATED] * 4, *[3] * 5, *[UNGENERATED] * 8]]
            )
            user = mx.full((2, 8), n, mx.int32)
            step, state = generator.step(user, state, Ceiling.over(*choices), forced if n else None)
            heard.append((step.tokens.tolist(), step.audio_logits))
            mx.eval(*arrays(state))
        return heard

    sampled = [Sampling(greedy=True), Sampling(audio_top_k=30)]
    penalised = [Sampling(), Sampling(repetition_penalty=1.4)]
    for choices in (sampled, penalised):
        theirs = steps(choices)
        launched.clear()
        with kernels(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("personaplex.cuda.kernel.launch", counted)
            ours = steps(choices)
        for (codes, logits), (their_codes, their_logits) in zip(ours, theirs, strict=True):
            assert codes == their_codes
            assert distance(logits, their_logits) < SLACK * 1e-5
        layers = wide.depformer_num_layers
        expected = (2, 0) if choices is sampled else (0, 2 * N_CODEBOOKS * layers)
        assert (launched["depformer_frame"], launched["attend_steps"]) == expected


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
