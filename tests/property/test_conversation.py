"""What must hold for a conversation whatever is said, forced or stepped beside it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from personaplex import PersonaPlex, Sampling
from personaplex.cuda.kernel import enabled
from personaplex.engine.duplex import Duplex, settle
from personaplex.engine.generator import Generator, GeneratorState
from personaplex.engine.prompt import Prompt, compose
from personaplex.engine.sampling import Ceiling
from personaplex.models.streams import UNGENERATED, USER, USER_ACOUSTIC
from personaplex.nn.state import arrays, copied, extract, insert, parameters, stack, without_rings
from personaplex.units import FRAME_SAMPLES
from personaplex.voice import Voice
from tests.conftest import same

SAMPLINGS = [Sampling(), Sampling(greedy=True), Sampling(text_top_k=0, audio_top_k=40, repetition_penalty=1.3)]
seeds = st.integers(0, 2**40)


def voice(seed: int, frames: int) -> Voice:
    return Voice("random", codes=np.random.default_rng(seed).integers(0, 2048, (frames, 8)))


def user_codes(seed: int, frames: int, slots: int = 1) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, 2048, (slots, 8, frames)).astype(np.int32))


def run(
    generator: Generator, state: GeneratorState, codes: mx.array, ceiling: Ceiling
) -> tuple[mx.array, GeneratorState]:
    tokens = []
    for t in range(codes.shape[2]):
        step, state = generator.step(codes[:, :, t], state, ceiling)
        mx.eval(step, state)
        tokens.append(step.tokens)
    return mx.stack(tokens, axis=2), state


def stepped(generator: Generator, prompt: Prompt, seed: int, sampling: Sampling) -> GeneratorState:
    """The state after `prompt`, read the slow way: one step per column, the next column forced."""
    state = generator.open(compose(generator.config), seed=seed, sampling=sampling)
    for column, following in pairwise([*prompt.columns, prompt.pending]):
        # A user frame's semantic code stands in its own column, its acoustic codes in the next.
        user = np.concatenate([column[USER][:1], following[USER_ACOUSTIC]])
        forced = mx.array(following[None])
        _, state = generator.step(mx.array(user[None]), state, Ceiling.over(sampling), forced)
        mx.eval(state)
    return state


@given(frames=st.integers(1, 6), n_text=st.integers(0, 9), sampling=st.sampled_from(SAMPLINGS[:2]), seed=seeds)
def test_a_batched_prefill_equals_stepping(
    model: PersonaPlex, frames: int, n_text: int, sampling: Sampling, seed: int
) -> None:
    generator = Generator(model.lm, model.config)
    text = list(np.random.default_rng(seed).integers(4, 300, n_text))
    prompt = compose(model.config, voice(seed, frames), text)
    fast, slow = generator.open(prompt, seed=seed, sampling=sampling), stepped(generator, prompt, seed, sampling)
    assert same(fast.column[:, :9], slow.column[:, :9])
    assert same(fast.column[:, 10:], slow.column[:, 10:])
    assert same(fast.temporal.position, slow.temporal.position)
    codes, ceiling = user_codes(seed + 1, 4), Ceiling.over(sampling)
    after_fast, fast = run(generator, fast, codes, ceiling)
    after_slow, slow = run(generator, slow, codes, ceiling)
    assert same(after_fast, after_slow)
    for a, b in zip(arrays(fast.temporal), arrays(slow.temporal), strict=True):
        assert float(mx.abs(a - b).max()) < 1e-4


@given(seed=seeds, extra=st.integers(1, 4), sampling=st.sampled_from(SAMPLINGS))
def test_slots_at_different_positions_equal_each_alone(
    model: PersonaPlex, seed: int, extra: int, sampling: Sampling
) -> None:
    generator = Generator(model.lm, model.config)
    prompts = [compose(model.config, voice(seed, 2 + extra), [5, 6, 7]), compose(model.config, voice(seed + 1, 2), [9])]
    codes, ceiling = user_codes(seed, 5, slots=2), Ceiling.over(sampling)
    states = [generator.open(p, seed=seed + i, sampling=sampling) for i, p in enumerate(prompts)]
    together, _ = run(generator, stack(states), codes, ceiling)
    for slot, state in enumerate(states):
        alone, _ = run(generator, state, codes[slot : slot + 1], ceiling)
        assert same(together[slot : slot + 1], alone)


@given(seed=seeds)
def test_a_slot_does_not_hear_who_moves_in_beside_it(model: PersonaPlex, seed: int) -> None:
    """Same slot count: bit for bit, whatever prompt, seed and sampling the neighbour has, and when it came."""
    generator = Generator(model.lm, model.config)
    ceiling = Ceiling.over(*SAMPLINGS)

    def opened(name: int, sampling: Sampling) -> GeneratorState:
        return generator.open(compose(model.config, voice(name, 3), [name % 300]), seed=name, sampling=sampling)

    codes, mine = user_codes(seed, 6, slots=3), opened(seed % 251, SAMPLINGS[0])
    quiet = stack([mine, opened(1, SAMPLINGS[1]), opened(2, SAMPLINGS[1])])
    expected, expected_state = run(generator, quiet, codes, ceiling)
    busy = stack([mine, opened(3, SAMPLINGS[2]), opened(4, SAMPLINGS[0])])
    first, busy = run(generator, busy, codes[:, :, :2], ceiling)
    busy = insert(busy, 2, opened(5, SAMPLINGS[2]))
    second, busy = run(generator, busy, codes[:, :, 2:], ceiling)
    assert same(mx.concatenate([first, second], axis=2)[:1], expected[:1])
    for a, b in zip(arrays(extract(busy, 0)), arrays(extract(expected_state, 0)), strict=True):
        assert bool(mx.array_equal(a, b).item())


@given(seed=seeds, heard=st.integers(0, 4))
def test_the_future_never_changes_the_past_and_a_frame_acts_when_it_should(
    model: PersonaPlex, seed: int, heard: int
) -> None:
    """User frame t can change nothing of the agent before its acoustic codes of frame t (reference timing, 5.4)."""
    generator, ceiling = Generator(model.lm, model.config), Ceiling.over(Sampling())
    state = generator.open(compose(model.config, voice(3, 3), [8]), seed=seed)
    codes = np.array(user_codes(seed, 6))
    changed = codes.copy()
    changed[:, :, heard] = (changed[:, :, heard] + 1) % 2048
    a, _ = run(generator, state, mx.array(codes), ceiling)
    b, _ = run(generator, state, mx.array(changed), ceiling)
    assert same(a[:, :9, :heard], b[:, :9, :heard])
    assert same(a[:, :2, heard], b[:, :2, heard])
    assert not same(a[:, :9], b[:, :9])


def attributes(module: Any) -> dict[str, object]:
    return {name: id(array) for name, array in parameters(module).items()}


@given(seed=seeds)
def test_a_step_changes_neither_the_module_nor_its_input(model: PersonaPlex, seed: int) -> None:
    """Kernels write the rings of what they are given, and nothing else of it."""
    sampling, kept = Sampling(), without_rings if enabled() else arrays
    duplex = Duplex(model.mimi, Generator(model.lm, model.config), Ceiling.over(sampling))
    state = duplex.open(compose(model.config, voice(seed, 2), [4]), seed=seed, sampling=sampling)
    pcm = mx.array(np.random.default_rng(seed).normal(0, 0.1, (1, FRAME_SAMPLES)).astype(np.float32))
    before = attributes(model.lm) | attributes(model.mimi)
    held = [np.array(leaf) for leaf in kept(state)]
    results = []
    for held_before in (copied(state, 0) if enabled() else state, state):
        frame, after = duplex.step(pcm, held_before)
        settle(frame, after)
        results.append([np.array(leaf) for leaf in [frame.pcm, frame.step.tokens, *arrays(after)]])
    assert attributes(model.lm) | attributes(model.mimi) == before
    assert all(np.array_equal(a, np.array(b)) for a, b in zip(held, kept(state), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6), seed=st.integers(0, 50))
def test_any_chunking_of_the_microphone_gives_the_same_conversation(
    model: PersonaPlex, sizes: list[int], seed: int
) -> None:
    pcm = np.random.default_rng(seed).normal(0, 0.1, sum(sizes)).astype(np.float32)
    pieces = np.split(pcm, np.cumsum(sizes)[:-1])
    chunked = list(model.respond_realtime(pieces, voice="VOICE0", seed=seed))
    at_once = model.respond(pcm, voice="VOICE0", seed=seed, max_steps=0)
    assert len(chunked) == -(-len(pcm) // FRAME_SAMPLES) == at_once.timings.n_frames
    assert np.array_equal(np.stack([f.tokens for f in chunked], axis=1), at_once.tokens)
    assert np.array_equal(np.concatenate([f.audio for f in chunked]), at_once.audio)


def test_forced_tokens_are_kept_and_heard(model: PersonaPlex) -> None:
    generator, ceiling = Generator(model.lm, model.config), Ceiling.over(Sampling(greedy=True))
    state = generator.open(compose(model.config, voice(1, 3), [8]), sampling=Sampling(greedy=True))
    forced = np.full((1, 17), UNGENERATED, np.int32)
    forced[0, 0], forced[0, 1] = 77, 1234
    codes = user_codes(1, 3)
    _, free = generator.step(codes[:, :, 0], state, ceiling)
    step, kept = generator.step(codes[:, :, 0], state, ceiling, mx.array(forced))
    assert kept.column[0, :2].tolist() == [77, 1234]
    assert free.column[0, :2].tolist() != [77, 1234]
    following, _ = generator.step(codes[:, :, 1], kept, ceiling)
    assert following.tokens[0, :2].tolist() == [77, 1234]
    assert bool(step.valid.item())
