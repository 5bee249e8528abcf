"""What a step will launch is known before it runs, and nothing comes of asking: no state moves, no kernel runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from personaplex.cuda import kernel as kernels
from personaplex.cuda import ring, sampling
from personaplex.cuda.build import Builder
from personaplex.cuda.kernel import Kernel, Kind, built_before, code, collecting
from personaplex.cuda.nvrtc import Target
from personaplex.cuda.ring import Tuning
from personaplex.engine.duplex import Duplex, DuplexState
from personaplex.engine.generator import Generator
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.model import PersonaPlex
from personaplex.models.lm import LanguageModel
from personaplex.nn.sinks import follow
from personaplex.nn.state import arrays, stack
from personaplex.units import FRAME_SAMPLES
from tests.small import small_model

CHOICE = Sampling(text_top_k=0, audio_top_k=0)
ADD = Kernel("add_one", "add_one<N>", ("x",), ("y",), ("warp.cuh",), shared=48, most_threads=64)


@pytest.fixture(scope="module")
def model() -> PersonaPlex:
    return small_model()


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "DEFAULT", Tuning(threads=32, rows=2, fewest=4, splits=2))
    monkeypatch.setattr(kernels, "multiprocessors", lambda: 1)
    monkeypatch.setattr(sampling, "DRAW_THREADS", 32)
    monkeypatch.setattr(sampling, "NOISE_THREADS", 32)


def machine(model: PersonaPlex, *, compiled: bool = False) -> Duplex:
    return Duplex(model.mimi, Generator(model.lm, model.config), Ceiling.over(CHOICE), compiled=compiled)


def two_slots(duplex: Duplex) -> DuplexState:
    state = stack([duplex.begin(None, seed=seed, sampling=CHOICE) for seed in (1, 2)])
    mx.eval(arrays(state))
    return state


PCM = np.random.default_rng(0).normal(0, 0.1, (3, 2, FRAME_SAMPLES)).astype(np.float32)
ACTIVE = mx.array([True, False])


def bits(state: DuplexState) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in arrays(state)]


def random_state() -> list[int]:
    return [int(number) for key in cast("list[mx.array]", mx.random.state) for number in np.array(key)]


@pytest.mark.usefixtures("few_threads")
def test_a_step_is_collected_whole_and_its_state_stays(model: PersonaPlex, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: dict[Kind, None] = {}

    def noted(kernel: Kernel, inputs: Any, outputs: Any, blocks: int, threads: int, constants: Any) -> list[mx.array]:
        launched[kernels._kind(kernel, inputs, outputs, constants)] = None
        return [mx.zeros(shape, dtype) for shape, dtype in outputs]

    monkeypatch.setattr(kernels, "launch", noted)
    duplex = machine(model)
    state = two_slots(duplex)
    before, drawn = bits(state), random_state()
    launched.clear()
    with collecting() as kinds:
        duplex.step(mx.array(PCM[0]), state, ACTIVE)
    assert launched == {}
    assert all(np.array_equal(*pair) for pair in zip(bits(state), before, strict=True))
    assert random_state() == drawn
    duplex.step(mx.array(PCM[0]), state, ACTIVE)
    assert list(kinds) == list(launched) and len(kinds) > 10
    assert len({code(kind).name for kind in kinds}) == len(kinds)


class Compiler:
    version = (13, 0)

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def compile(self, text: str, _: Target) -> bytes:
        name = text.rpartition('extern "C" __global__ void ')[2].partition("(")[0]
        self.events.append(f"built {name}")
        return name.encode()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A card as far as this package can see: what is built for it and launched on it, in order."""
    events: list[str] = []

    def precompiled(*, name: str, compiled_source: bytes, output_shapes: Any, output_dtypes: Any, **_: Any) -> Any:
        assert compiled_source == name.encode()
        events.append(f"launched {name}")
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto")
    monkeypatch.setattr(kernels, "on_card", lambda: True)
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", precompiled)
    built = Builder(Compiler(events), Target("sm_90a", binary=True), None)
    monkeypatch.setattr(kernels, "builder", lambda: built)
    yield events


@pytest.mark.usefixtures("few_threads")
@pytest.mark.parametrize("compiled", [False, True])
def test_all_is_built_before_the_first_launch_of_a_step(compiled: bool, model: PersonaPlex, card: list[str]) -> None:
    duplex = machine(model, compiled=compiled)
    state = two_slots(duplex)
    card.clear()
    for n in range(2):
        _, state = duplex.step(mx.array(PCM[n]), state, ACTIVE)  # tracing launches; nothing needs to be computed
    first = next(i for i, event in enumerate(card) if event.startswith("launched"))
    built = [event.removeprefix("built ") for event in card[:first]]
    launched = {event.removeprefix("launched ") for event in card[first:]}
    assert len(built) == len(set(built)) > 10
    assert set(built) == launched, "no more is built than is needed, and nothing later"


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_what_turns_pinned_keys_is_built_before_a_call_needs_it(
    kv_bits: int, model: PersonaPlex, card: list[str]
) -> None:
    """It is first launched minutes into a call, when a window has left its prompt."""
    wide = replace(model.config, lm=replace(model.config.lm, dim=128, num_heads=2))
    lm = LanguageModel(wide.lm)
    lm.eval()
    generator = Generator(lm, wide, pins=8, kv_bits=kv_bits)
    state = generator.begin(None, sampling=CHOICE)[1]
    card.clear()
    before = [np.array(leaf) for leaf in arrays(state.temporal.rings)]
    generator.prepare(state)
    (built,) = card
    assert built.startswith("built turn_pins")
    after = [np.array(leaf) for leaf in arrays(state.temporal.rings)]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    follow(state.temporal.rings, state.sinks, np.array([1]), np.array([25]), [0], wide.lm.max_period)
    assert card[1:] == [f"launched {built.removeprefix('built ')}"]


def test_a_form_is_asked_for_once_and_not_where_kernels_are_off(
    card: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def step(x: mx.array) -> mx.array:
        asked.append(x.shape)
        return ADD([x], [(x.shape, x.dtype)], blocks=1, threads=32, N=x.shape[0])[0]

    run = built_before(step, lambda x: x + 1)
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "stock")
    assert run(mx.zeros((2,))).tolist() == [1, 1]
    assert not asked and not card
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto")
    for size in (2, 2, 3):
        assert run(mx.zeros((size,))).tolist() == [1] * size
    assert asked == [(2,), (3,)] and [event.split()[0] for event in card] == ["built", "built"]
    with pytest.raises(ZeroDivisionError), collecting():
        raise ZeroDivisionError
    step(mx.zeros((2,)))
    assert card[-1].startswith("launched"), "collecting ends with its block"


def test_a_launch_says_what_mlx_needs(card: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def taken(**arguments: Any) -> list[mx.array]:
        given.append(arguments)
        return [mx.zeros((5,))]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", taken)
    x = mx.zeros((4,), mx.bfloat16)
    ADD([x], [((5,), mx.float32)], blocks=3, threads=32, N=4)
    (said,) = given
    source = code(Kind(ADD, (("N", 4),), (mx.bfloat16, mx.float32)))
    assert said.pop("inputs")[0] is x
    assert said == {
        "name": source.name,
        "compiled_source": source.name.encode(),
        "scalars": [],
        "output_shapes": [(5,)],
        "output_dtypes": [mx.float32],
        "grid": (96, 1, 1),
        "threadgroup": (32, 1, 1),
        "shared_memory": 48,
        "ensure_row_contiguous": True,
    }


def test_without_a_compiler_mlx_builds(card: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def cuda_kernel(**arguments: Any) -> Any:
        made.append(arguments)
        return lambda **form: [mx.zeros(shape) for shape in form["output_shapes"]]

    monkeypatch.setattr(kernels, "builder", lambda: None)
    monkeypatch.setattr(mx.fast, "cuda_kernel", cuda_kernel)
    kernels._by_mlx.cache_clear()
    for _ in range(2):
        (y,) = ADD([mx.zeros((4,))], [((5,), mx.float32)], blocks=3, threads=32, N=7)
    (said,) = made
    assert y.shape == (5,) and card == []
    assert said["name"] == code(Kind(ADD, (("N", 7),), (mx.float32, mx.float32))).name
    assert "__launch_bounds__(64, 1)" in said["header"] and said["shared_memory"] == 48
    assert said["source"] == "constexpr int N = 7;\nadd_one<N>(x, y);"
    kernels._by_mlx.cache_clear()
