"""How far this package's kernels are from MLX's own operations: one step by each, from the same state.

Every token is given, so that both compute the same logits of text and codes, of which none is chosen. A time that
kernels reach counts only beside this: of the model that is measured, and of the bundled one, whose weights are real.
Rounding alone makes some: two ways to add up bfloat16 differ by 7 to 9 % of what a 7B's random logits are, and for
packed weights it is MLX's that is further from float32 (benchmarks/log.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import mlx.core as mx
import numpy as np

from personaplex.bench.filled import filled
from personaplex.bench.weights import open_model
from personaplex.checkpoint.sources import BUNDLED
from personaplex.cuda import kernel
from personaplex.engine.generator import Generator, GeneratorState, Step
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.models.streams import N_STREAMS
from personaplex.nn.state import arrays, copied
from personaplex.units import N_CODEBOOKS

CHOICE = Sampling()
"""As in the steps that are timed, so that the same kernels compute."""


@contextmanager
def stock() -> Iterator[None]:
    """MLX's own operations meanwhile, whatever was asked for."""
    name, launch = "PERSONAPLEX_KERNELS", kernel.launch
    wish = os.environ.get(name)
    os.environ[name], kernel.launch = "stock", kernel.on_device
    try:
        yield
    finally:
        kernel.launch = launch
        if wish is None:
            del os.environ[name]
        else:
            os.environ[name] = wish


def of_step(
    generator: Generator, state: GeneratorState, slots: Sequence[int] = (0,)
) -> tuple[dict[str, object], GeneratorState]:
    """What a row says, and the state after the step, which alone may be gone on from.

    `logits_off` is the largest difference of one logit, `logits_off_rms` that of all of them over their size. All
    slots step together by kernels, as they do when they are timed; by MLX's own operations each of `slots` alone.
    Nothing is said where no kernel computes.
    """
    if not kernel.enabled():
        return {}, state
    state, rng = generator.follow(state), np.random.default_rng(0)
    n, lm = state.column.shape[0], generator.config.lm
    user = mx.array(rng.integers(0, lm.card, (n, N_CODEBOOKS)), mx.int32)
    forced = rng.integers(0, lm.card, (n, N_STREAMS))
    forced[:, 0] = rng.integers(0, lm.text_card, n)
    given, ceiling = mx.array(forced, mx.int32), Ceiling.over(CHOICE)
    ours, after = generator.step(user, state, ceiling, given)
    mx.eval(ours, arrays(after))
    found, expected = [], []
    for slot in slots:
        # Its rings hold the token already that is written there again; nothing else of the old state has changed.
        one, mine = copied(state, slot), slice(slot, slot + 1)
        with stock():
            theirs, _ = generator.step(user[mine], one, ceiling, given[mine])
            mx.eval(theirs)
        found.append(_logits(ours, slot))
        expected.append(_logits(theirs, 0))
        del one, theirs
    ours_all, theirs_all = np.concatenate(found), np.concatenate(expected)
    apart = ours_all - theirs_all
    rms = np.sqrt(np.square(apart).mean() / np.square(theirs_all).mean())
    return {"logits_off": float(f"{np.abs(apart).max():.3g}"), "logits_off_rms": float(f"{rms:.3g}")}, after


def of_bundled(kv_bits: int) -> dict[str, object]:
    """The same of the bundled model, behind a full window."""
    found = _of_bundled(kv_bits) if kernel.enabled() else {}
    return {f"bundled_{name}": value for name, value in found.items()}


@cache
def _of_bundled(kv_bits: int) -> dict[str, object]:
    model = open_model(BUNDLED, None, compiled=False)
    generator = Generator(model.lm, model.config, kv_bits=kv_bits)
    begun = generator.begin(None, sampling=CHOICE)[1]
    return of_step(generator, filled(generator, begun, 2 * model.lm.config.context))[0]


def _logits(step: Step, slot: int) -> np.ndarray:
    """Of text and codes, [V]."""
    of = (step.text_logits[slot].reshape(-1), step.audio_logits[slot].reshape(-1))
    return np.concatenate([np.array(part.astype(mx.float32)) for part in of])
