"""Calls longer than the window: the same as if the model had read everything at once, in memory that does not grow."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.folder import ModelFolder
from personaplex.engine.duplex import Duplex, settle
from personaplex.engine.generator import Generator
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.models.lm import LanguageModel
from personaplex.nn.attention import empty_ring
from personaplex.nn.state import arrays, n_bytes, parameters
from personaplex.units import FRAME_SAMPLES
from tests.conftest import SOAK, WINDOW
from tests.unit.test_checkpoint import WIDE

FRAMES = 22_500 if SOAK else 300
"""Half an hour, or twenty-five windows' worth."""


def test_the_window_slides_for_ever() -> None:
    lm = ModelFolder(WINDOW).load_lm(dtype=mx.float32)
    columns = mx.array(np.random.default_rng(0).integers(0, 90, (1, FRAMES, 17)))
    state = lm.init_state(1)
    for t in range(FRAMES):
        z, state = lm.advance(lm.embed(columns[:, t : t + 1]), state)
        mx.eval(z, state)
    # Two layers of twelve keys: nothing before the last 24 columns can reach the last one.
    recent, shift = columns[:, -60:], FRAMES - 60
    fresh = lm.init_state(1)._replace(position=mx.array([shift]))
    rings = tuple(empty_ring(r.k.shape, r.k.dtype) for r in fresh.rings)
    again, _ = lm.advance(lm.embed(recent), fresh._replace(rings=rings))
    assert float(mx.abs(z[:, 0] - again[:, -1]).max()) < 1e-4
    assert state.position.item() == FRAMES and n_bytes(state) == n_bytes(lm.init_state(1))


def test_a_long_conversation_keeps_its_size_and_sense() -> None:
    folder = ModelFolder(WINDOW)
    sampling = Sampling(text_top_k=20, audio_top_k=50)
    duplex = Duplex(
        folder.load_mimi(),
        Generator(folder.load_lm(dtype=mx.float32), folder.config),
        Ceiling.over(sampling),
    )
    state = duplex.open(compose(folder.config, None, [5, 6, 7]), seed=1, sampling=sampling)
    size, rng, seen = n_bytes(state), np.random.default_rng(1), set()
    for _ in range(FRAMES // 5):
        pcm = mx.array(rng.normal(0, 0.1, (1, FRAME_SAMPLES)).astype(np.float32))
        frame, state = duplex.step(pcm, state)
        settle(frame, state)
        assert bool(mx.isfinite(frame.pcm).all().item()) and 0 <= int(frame.step.tokens.min()) < 256
        seen.add(np.array(frame.step.tokens[0]).tobytes())
    assert n_bytes(state) == size and len(seen) > FRAMES // 10


def test_the_ring_is_written_in_place() -> None:
    """A copy in every step would be the greatest cost of a long window; only holding the old state makes one."""
    lm = LanguageModel(dataclasses.replace(WIDE, context=40_000))
    state, column = lm.init_state(1), lm.embed(mx.zeros((1, 1, 17), mx.int32))
    mx.eval(state, column, parameters(lm))
    ring = n_bytes(state)
    for held, expected in ((False, 0), (True, 1)):
        keep = state if held else None
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        z, state = lm.advance(column, state)
        mx.eval(z, arrays(state))
        copies = (mx.get_peak_memory() - before) / ring
        assert round(copies) == expected, f"held {keep is not None}: {copies:.2f} rings more"
