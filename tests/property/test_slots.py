"""Many conversations in one state: a slot without a frame stays where it is, a pinned prompt stays in view."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from personaplex.checkpoint.folder import ModelFolder
from personaplex.engine.duplex import Duplex, DuplexState, settle
from personaplex.engine.generator import Generator
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.nn.state import advance_active, arrays, extract, insert, n_bytes, stack, trim
from personaplex.units import FRAME_SAMPLES
from tests.conftest import SOAK, WINDOW

FOLDER = ModelFolder(WINDOW)
LM, MIMI = FOLDER.load_lm(dtype=mx.float32), FOLDER.load_mimi()
SAMPLING = Sampling(text_top_k=20, audio_top_k=50)


def machine(pins: int = 0, spare_frames: int = 0) -> Duplex:
    generator = Generator(LM, FOLDER.config, pins=pins, spare_frames=spare_frames)
    return Duplex(MIMI, generator, Ceiling.over(SAMPLING))


def opened(duplex: Duplex, seed: int, n_text: int = 3) -> DuplexState:
    text = [int(token) for token in np.random.default_rng(seed).integers(4, 90, n_text)]
    return duplex.open(compose(FOLDER.config, None, text), seed=seed, sampling=SAMPLING)


def sound(seed: int, n_frames: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (n_frames, FRAME_SAMPLES)).astype(np.float32)


@given(moves=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=8), seed=st.integers(0, 99))
def test_a_slot_without_a_frame_stays_where_it_is(moves: list[tuple[bool, bool]], seed: int) -> None:
    """Two slots that move when they like say what each says when it never waits, bit for bit, at full windows too."""
    duplex = machine(pins=30)
    heard = [sound(seed + slot, sum(m[slot] for m in moves)) for slot in range(2)]
    said: list[list[np.ndarray]] = [[], []]
    state, at = stack([opened(duplex, seed), opened(duplex, seed + 1, 9)]), [0, 0]
    for move in moves:
        pcm = np.full((2, FRAME_SAMPLES), 0.3, np.float32)  # what an idle slot is given is not heard
        for slot in range(2):
            if move[slot]:
                pcm[slot], at[slot] = heard[slot][at[slot]], at[slot] + 1
        frame, state = duplex.step(mx.array(pcm), state, mx.array(move))
        settle(frame, state)
        for slot in range(2):
            if move[slot]:
                said[slot].append(np.array(frame.pcm[slot]))
    for slot in range(2):
        alone = stack([opened(duplex, seed), opened(duplex, seed + 1, 9)])
        for pcm, expected in zip(heard[slot], said[slot], strict=True):
            frame, alone = duplex.step(mx.array(np.stack([pcm, pcm])), alone)
            settle(frame, alone)
            assert np.array_equal(np.array(frame.pcm[slot]), expected)


LONG = 40 if SOAK else 26
"""Moves: more than the twelve frames of a window, also for who joins on the way."""

ROUNDING = 1e-4
"""How far logits and latents may differ between engines of different slot counts, of the largest of them."""


@given(
    slots=st.integers(2, 5),
    moves=st.lists(st.tuples(st.sampled_from("jl."), st.integers(0, 4)), min_size=LONG - 10, max_size=LONG),
    seed=st.integers(0, 99),
)
def test_across_slot_counts_only_the_rounding_differs(slots: int, moves: list[tuple[str, int]], seed: int) -> None:
    """One conversation alone and among others that join, leave and wait, hearing and saying the same tokens: past the
    end of the window its logits are the same within `ROUNDING`, and so is what the codec makes of its sound.
    """
    duplex, rng = machine(pins=30), np.random.default_rng(seed)
    mine, pcm = slots - 1, sound(seed, len(moves))
    generator, ceiling = duplex.generator, duplex.ceiling
    alone, many = opened(duplex, seed), stack([opened(duplex, seed + slot, 1 + slot) for slot in range(slots)])
    many = insert(many, mine, alone)
    active = [False] * (slots - 1) + [True]
    worst = 0.0
    for (move, who), heard in zip(moves, pcm, strict=True):
        if move != "." and who < mine:
            active[who] = move == "j"
            many = insert(many, who, opened(duplex, seed + who, 1 + who)) if active[who] else many
        active[mine] = move == "j" or who != 0
        others = rng.normal(0, 0.1, (slots, FRAME_SAMPLES)).astype(np.float32)
        others[mine] = heard
        here, encoder = duplex.mimi.latents(mx.array(heard[None]), alone.encoder)
        there, encoders = duplex.mimi.latents(mx.array(others), many.encoder)
        codes, forced = mx.array(rng.integers(0, 90, (slots, 8))), mx.array(rng.integers(0, 90, (slots, 17)))
        one, after = generator.step(codes[mine:], alone.generator, ceiling, forced[mine:])
        all_of_them, state = generator.step(codes, many.generator, ceiling, forced)
        many = advance_active(mx.array(active), many, DuplexState(encoders, state, many.decoder))
        mx.eval(one, all_of_them, arrays(many))
        if not active[mine]:
            continue
        alone = DuplexState(encoder, after, alone.decoder)
        mx.eval(arrays(alone))
        for a, b in (
            (one.text_logits, all_of_them.text_logits[mine:]),
            (one.audio_logits, all_of_them.audio_logits[mine:]),
            (here, there[mine:]),
        ):
            worst = max(worst, float(mx.abs(a - b).max() / mx.abs(a).max()))
    assert worst < ROUNDING


@given(n_prompt=st.integers(2, 30), size=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_pinned_prompt_is_seen_as_in_training(n_prompt: int, size: int, seed: int) -> None:
    """The ring, read in calls of any size, against one pass over everything (`hidden`, which training uses)."""
    n_frames = 70
    columns = mx.array(np.random.default_rng(seed).integers(0, 90, (2, n_frames, 17)))
    pinned = mx.array([n_prompt - 1, 0], mx.int32)
    expected = LM.hidden(columns, pinned)
    state, found = LM.init_state(2, 30), []
    for start in range(0, n_frames, size):
        z, state = LM.advance(LM.embed(columns[:, start : start + size]), state, pinned)
        mx.eval(z, state)
        found.append(z)
    assert float(mx.abs(mx.concatenate(found, axis=1) - expected).max()) < 1e-4
    plain = LM.hidden(columns)
    assert n_prompt == 2 or float(mx.abs(plain - expected)[0, 40:].max()) > 1e-3


@given(n_text=st.integers(1, 12))
def test_the_engine_pins_what_training_pins(n_text: int) -> None:
    """`train/timeline.py` counts the frames of the prompt, of which the first stands in column 1."""
    duplex = machine(pins=40)
    prompt = compose(FOLDER.config, None, [5] * n_text)
    frames_in_training = prompt.n_frames - 1
    assert opened(duplex, 1, n_text).generator.pinned.tolist() == [frames_in_training]
    assert opened(machine(), 1, n_text).generator.pinned.tolist() == [0]


def test_a_long_call_with_a_pinned_prompt_keeps_its_size() -> None:
    """The window of twelve is full many times over; the prompt is still seen, and the plain window has lost it."""
    pinned, plain = machine(pins=30), machine()
    pcm = sound(0, 2_000 if SOAK else 60)
    for duplex, lost in ((pinned, False), (plain, True)):
        ends = []
        for text in ([5, 6, 7], [50, 60, 70]):
            state = duplex.open(compose(FOLDER.config, None, text), seed=1, sampling=SAMPLING)
            # Only the prompt may differ: what is said is forced to be the same by starting from the same next column.
            size = n_bytes(state)
            for frame_pcm in pcm:
                state = state._replace(generator=state.generator._replace(column=mx.full((1, 17), 9, mx.int32)))
                frame, state = duplex.step(mx.array(frame_pcm[None]), state)
                settle(frame, state)
            assert n_bytes(state) == size
            ends.append(frame.step.hidden)
        assert (float(mx.abs(ends[0] - ends[1]).max()) < 1e-6) == lost


@given(seed=st.integers(0, 99), heard=st.integers(0, 30), slot=st.integers(0, 1))
def test_a_trimmed_state_goes_on_in_another_slot(seed: int, heard: int, slot: int) -> None:
    """Whatever stood in the slot before."""
    duplex = machine(pins=30)
    pcm = mx.array(sound(seed, heard + 2))
    one = stack([opened(duplex, seed), opened(duplex, seed + 1)])
    for t in range(heard):
        frame, one = duplex.step(mx.broadcast_to(pcm[t], (2, FRAME_SAMPLES)), one)
        settle(frame, one)
    small = trim(extract(one, 0))
    used = insert(one, slot, small)
    mx.eval(arrays(used))
    assert heard > 20 or n_bytes(small) < n_bytes(extract(one, 0))
    for t in range(heard, heard + 2):
        said = []
        for at, state in ((0, one), (slot, used)):
            frame, after = duplex.step(mx.broadcast_to(pcm[t], (2, FRAME_SAMPLES)), state)
            settle(frame, after)
            said.append((np.array(frame.pcm[at]), np.array(frame.step.tokens[at]), after))
        assert np.array_equal(said[0][0], said[1][0]) and np.array_equal(said[0][1], said[1][1])
        one, used = said[0][2], said[1][2]
