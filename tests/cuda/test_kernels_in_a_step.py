"""Whole steps of a model, with kernels as without: the same tokens, whoever is beside, and nobody's past changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

import mlx.core as mx
import numpy as np
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.cuda import ring, sampling
from personaplex.cuda.kernel import Kernel, on_card, on_device
from personaplex.cuda.ring import Tuning
from personaplex.engine.columns import begin_column, end_column
from personaplex.engine.duplex import Duplex, read
from personaplex.engine.generator import Generator, GeneratorState, Step
from personaplex.engine.prompt import Prompt, compose
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.models.streams import UNGENERATED, initial_column
from personaplex.nn.state import advance_active, arrays, copied, extract, insert, set_back, stack, trim, without_rings
from personaplex.units import FRAME_SAMPLES
from tests.conftest import WINDOW
from tests.cuda.emulator import SLACK, emulate, fewer
from tests.small import small_model

FOLDER = ModelFolder(WINDOW)
PINS, SPARE, STEPS = 30, 4, 14
"""More steps than the twelve frames of the window, and the rows beyond them."""
CHOICES = {
    "greedy": Sampling(greedy=True),
    "sampled": Sampling(text_top_k=20, audio_top_k=50),
    "with a penalty": Sampling(text_top_k=0, audio_top_k=3, repetition_penalty=1.3),
}
FREE = Sampling(text_top_k=0, audio_top_k=0)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Few threads: the emulator takes its time for each."""
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)
    fewer(monkeypatch, "personaplex.cuda.ring.DEFAULT", Tuning(threads=32, rows=2, fewest=4, splits=2))
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: 1)
    # These have tests of their own, and many threads.
    monkeypatch.setattr("personaplex.cuda.depformer._MOST_SLOTS", 0)
    fewer(monkeypatch, "personaplex.cuda.matvec.TUNING", {})
    monkeypatch.setattr("personaplex.nn.sinks.STRIDE", 3)
    fewer(monkeypatch, "personaplex.cuda.sampling.DRAW_THREADS", 32)
    fewer(monkeypatch, "personaplex.cuda.sampling.NOISE_THREADS", 32)
    yield monkeypatch


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(FOLDER.load_lm(dtype=mx.float32), FOLDER.config, pins=PINS, spare_frames=SPARE)


def prompt(n_text: int) -> Prompt:
    return compose(FOLDER.config, None, list(range(5, 5 + n_text)))


def opened(generator: Generator, choice: Sampling, seeds: tuple[int, ...]) -> GeneratorState:
    """Conversations with prompts of different lengths, one of them with none."""
    state = stack(
        [
            generator.open(prompt(3 * i), seed=seed, sampling=choice)
            if i
            else generator.begin(None, seed=seed, sampling=choice)[1]
            for i, seed in enumerate(seeds)
        ]
    )
    mx.eval(arrays(state))
    return state


def step(
    generator: Generator, state: GeneratorState, n: int, choice: Sampling, forced: mx.array | None = None
) -> tuple[Step, GeneratorState]:
    user = mx.array(np.random.default_rng(n).integers(0, 90, (state.column.shape[0], 8)))
    result, after = generator.step(user, generator.follow(state), Ceiling.over(choice), forced)
    mx.eval(result, arrays(after))
    return result, after


def talk(
    generator: Generator, state: GeneratorState, frames: range, choice: Sampling, slot: int = 0
) -> tuple[list[list[int]], GeneratorState]:
    """The tokens of a slot's frames, and the state behind them."""
    said = []
    for n in frames:
        result, state = step(generator, state, n, choice)
        said.append(np.array(result.tokens)[slot].tolist())
    return said, state


@pytest.mark.parametrize("name", CHOICES)
def test_every_token_is_that_of_the_stock_path(name: str, generator: Generator, kernels: pytest.MonkeyPatch) -> None:
    """Past the window's end, with pinned prompts that follow it, and with some tokens forced."""
    choice, found = CHOICES[name], []
    forced = np.full((STEPS, 3, 17), UNGENERATED, np.int32)
    forced[5:8, 1, 0], forced[9, 2, 1:9] = 7, 11
    for stock in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            if stock:
                patched.setattr("personaplex.cuda.kernel.launch", on_device)
            state = opened(generator, choice, (3, 4, 5))
            steps = []
            for n in range(STEPS):
                result, state = step(generator, state, n, choice, mx.array(forced[n]))
                steps.append(result)
            found.append(steps)
    assert np.array(state.sinks.shift).min() == 0 < np.array(state.sinks.shift).max()
    for mine, theirs in zip(*found, strict=True):
        assert np.array_equal(mine.tokens, theirs.tokens)
        assert np.array_equal(mine.valid, theirs.valid)
        for one, other in zip(mine[2:], theirs[2:], strict=True):
            np.testing.assert_allclose(np.array(one), np.array(other), atol=SLACK * 1e-4)


def test_two_launches_of_attention_a_layer_and_one_for_each_draw(
    generator: Generator, kernels: pytest.MonkeyPatch
) -> None:
    choice, launched = CHOICES["sampled"], Counter[str]()
    state = opened(generator, choice, (3, 4))

    def counted(kernel: Kernel, *rest: object) -> list[mx.array]:
        launched[kernel.name] += 1
        return emulate(kernel, *rest)  # type: ignore[arg-type]

    kernels.setattr("personaplex.cuda.kernel.launch", counted)
    step(generator, state, 0, choice)
    layers, draws = FOLDER.config.lm.num_layers, 1 + generator.lm.depformer.n_steps
    # A card does not split so short a window among blocks.
    assert (launched[ring.ATTEND_RING.name], launched[ring.COMBINE.name]) == (layers, 0 if on_card() else layers)
    assert launched[ring.MOVED_ON.name] == 1
    assert (launched[sampling.NOISE.name], launched[sampling.DRAW.name]) == (2, draws)


def test_what_is_gone_on_from_can_be_gone_on_from_again(kernels: pytest.MonkeyPatch) -> None:
    """A reply that somebody holds stays what it was, though rings are written in place."""
    model = small_model()
    duplex = Duplex(model.mimi, model.generator, Ceiling.over(FREE), compiled=False)
    held = duplex.begin(None, seed=1, sampling=FREE)
    before = [np.array(array.astype(mx.float32)) for array in arrays(held)]
    state = duplex.resume(held, seed=2, sampling=FREE)
    for n in range(2):
        frame, state = duplex.step(mx.full((1, FRAME_SAMPLES), 0.1 * n), state)
        read(frame, state)
    after = [np.array(array.astype(mx.float32)) for array in arrays(held)]
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_conversation_cannot_tell_who_is_beside_it(generator: Generator, kernels: pytest.MonkeyPatch) -> None:
    """Bit for bit, at the same number of slots: others are elsewhere in their rings, or never move at all."""
    choice, heard = FREE, []
    for others, moving in (((1, 2), True), ((8, 9), False)):
        state = opened(generator, choice, (others[0], 4, others[1]))
        _, other = talk(generator, extract(opened(generator, choice, (6, 7)), 1), range(5 if moving else 0), choice)
        state = insert(state, 2, trim(other))
        steps = []
        for n in range(STEPS):
            result, after = step(generator, state, n, choice)
            state = advance_active(mx.array([moving, True, moving]), state, after)
            steps.append([np.array(leaf.astype(mx.float32))[1] for leaf in result])
        heard.append(steps)
    for one, other_way in zip(*heard, strict=True):
        for leaf, same in zip(one, other_way, strict=True):
            assert np.array_equal(leaf, same)


def test_a_slot_that_waited_goes_on_as_if_it_had_not(generator: Generator, kernels: pytest.MonkeyPatch) -> None:
    choice = FREE
    expected, _ = talk(generator, opened(generator, choice, (3, 4)), range(STEPS), choice, slot=1)
    said: list[list[int]] = []
    state = opened(generator, choice, (3, 4))
    for turn in count():
        active = turn % 6 != 2
        result, after = step(generator, state, len(said) if active else 1000 + turn, choice)
        state = advance_active(mx.array([True, active]), state, after)
        if active:
            said.append(np.array(result.tokens)[1].tolist())
        if len(said) == STEPS:
            break
    assert said == expected


@pytest.mark.parametrize("slots", [1, 2])
def test_what_was_captured_stays_as_it_was(slots: int, kernels: pytest.MonkeyPatch) -> None:
    """Its ring is full, and written over afterwards: one slot's is all there is of the array it was taken from."""
    generator = Generator(FOLDER.load_lm(dtype=mx.float32), FOLDER.config)
    choice, slot, full = FREE, slots - 1, FOLDER.config.lm.context
    _, state = talk(generator, opened(generator, choice, (3, 4)[:slots]), range(full), choice)
    captured = trim(extract(state, slot))
    mx.eval(arrays(captured))
    first, state = talk(generator, state, range(5), choice, slot)
    for _ in range(2):  # it may be gone on from as often as one likes
        again, state = talk(generator, insert(state, slot, captured), range(5), choice, slot)
        assert again == first


def test_a_slot_that_was_set_back_says_the_same_again(generator: Generator, kernels: pytest.MonkeyPatch) -> None:
    choice = FREE
    _, state = talk(generator, opened(generator, choice, (3, 4)), range(STEPS), choice)
    kept = without_rings(state)
    first, state = talk(generator, state, range(SPARE), choice, slot=1)
    again, _ = talk(generator, set_back(state, 1, kept), range(SPARE), choice, slot=1)
    assert again == first


def test_a_prefix_begins_any_number_of_conversations(generator: Generator, kernels: pytest.MonkeyPatch) -> None:
    choice = FREE
    prefix = generator.read(prompt(3))
    begun = [generator.begin(prefix, seed=seed, sampling=choice)[1] for seed in (1, 2)]
    said: list[list[list[int]]] = [[], []]
    for n in range(4):
        for i, state in enumerate(begun):
            frame, begun[i] = talk(generator, state, range(n, n + 1), choice)
            said[i] += frame
    for seed, found in zip((1, 2), said, strict=True):
        alone = generator.open(prompt(3), seed=seed, sampling=choice)
        assert talk(generator, alone, range(4), choice)[0] == found


def test_two_states_of_one_conversation_need_a_copy(generator: Generator, kernels: pytest.MonkeyPatch) -> None:
    """What `copied` is for: without it, the second way that a conversation goes would change the first."""
    choice = CHOICES["greedy"]
    _, state = talk(generator, opened(generator, choice, (3,)), range(3), choice)
    other = copied(state, 0)
    mx.eval(arrays(other))
    there, _ = talk(generator, copied(state, 0), range(100, 110), choice)
    here, way = talk(generator, state, range(4), choice)
    elsewhere, _ = talk(generator, other, range(100, 110), choice)
    assert elsewhere == there
    _, fresh = talk(generator, opened(generator, choice, (3,)), range(3), choice)
    expected, _ = talk(generator, fresh, range(8), choice)
    assert here + talk(generator, way, range(4, 8), choice)[0] == expected


def test_columns_are_those_of_the_stock_path(kernels: pytest.MonkeyPatch) -> None:
    """Number for number, at position 0 and behind it."""
    rng = np.random.default_rng(0)

    def tokens(*shape: int) -> mx.array:
        return mx.array(rng.integers(UNGENERATED, 90, shape).astype(np.int32))

    initial, position = mx.array([initial_column(FOLDER.config.lm)], mx.int32), mx.array([0, 1, 77])
    user = mx.array(rng.integers(0, 90, (3, 8)).astype(np.uint32))
    opening = (initial, user, tokens(3, 17), position, tokens(3, 17))
    text, codes, recent = tokens(3), tokens(3, 8), tokens(3, 30, 9)
    mine = begin_column(*opening)
    said = end_column(*mine, position, text, codes, recent)
    kernels.setattr("personaplex.cuda.kernel.launch", on_device)
    theirs = begin_column(*opening)
    for one, other in zip((*mine, *said), (*theirs, *end_column(*theirs, position, text, codes, recent)), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(np.array(one), np.array(other))


def test_packed_rings_hear_the_same_as_the_stock_path(kernels: pytest.MonkeyPatch) -> None:
    """Within a hundredth: every token is given, for a key on the edge of two units may tip a draw."""
    packed = Generator(FOLDER.load_lm(dtype=mx.float32), FOLDER.config, pins=PINS, spare_frames=SPARE, kv_bits=8)
    forced = mx.array(np.random.default_rng(1).integers(0, 90, (STEPS, 2, 17)).astype(np.int32))
    heard = []
    for stock in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            if stock:
                patched.setattr("personaplex.cuda.kernel.launch", on_device)
            state = opened(packed, CHOICES["greedy"], (3, 4))
            hidden = []
            for n in range(STEPS):
                result, state = step(packed, state, n, CHOICES["greedy"], forced[n])
                hidden.append(np.array(result.hidden))
        heard.append(np.stack(hidden))
    assert np.abs(heard[0] - heard[1]).max() < 0.01 * np.abs(heard[1]).max()
