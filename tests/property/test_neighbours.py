"""Nobody hears who is beside them, in a network wide enough for every kernel that a card has for the 7B.

On a CPU MLX's own operations compute it, in float32. On a card (`make card`) it is in bfloat16 and by kernels: one slot
by the temporal transformer's layers in one launch, up to four with the depformer in one, up to eight by tensor cores,
more by MLX's products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from personaplex.bench.weights import random_model
from personaplex.config import LMConfig
from personaplex.cuda.kernel import on_card
from personaplex.engine.generator import Generator, GeneratorState, Step
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.nn.state import advance_active, arrays, extract, insert, stack, trim
from tests.wide import WIDE

CONFIG = replace(
    WIDE,
    lm=LMConfig(
        dim=256, text_card=320, num_heads=2, num_layers=2, hidden_scale=3.0, context=12, depformer_dim=256,
        depformer_dim_feedforward=384, depformer_num_heads=4, depformer_num_layers=2,
    ),
)  # fmt: skip
STEPS = 10
"""With the prompt's columns, past the window's twelve frames."""
CHOICES = (Sampling(), Sampling(greedy=True), Sampling(text_top_k=0, audio_top_k=0))


BITS, SLOTS = ((16, 8, 4), (2, 4, 8, 9)) if on_card() else ((16, 4), (3,))
"""Without a card they are all computed by the same operations."""


@pytest.fixture(scope="module", params=BITS, ids="{} bits".format)
def generator(request: pytest.FixtureRequest) -> Iterator[Generator]:
    model = random_model(CONFIG, request.param, compiled=False)
    yield Generator(model.lm, model.config, pins=30)


def opened(generator: Generator, name: int) -> GeneratorState:
    prompt = compose(CONFIG, None, [4 + (name * 7 + i) % 80 for i in range(1 + name % 5)])
    return generator.open(prompt, seed=name, sampling=CHOICES[name % 3])


def step(
    generator: Generator, state: GeneratorState, n: int, others: int, forced: mx.array | None = None
) -> tuple[Step, GeneratorState]:
    """Slot 0 hears what it always hears in frame `n`; the others what they are given."""
    slots = state.column.shape[0]
    user = np.random.default_rng([others, n]).integers(0, 300, (slots, 8))
    user[0] = np.random.default_rng(n).integers(0, 300, 8)
    given = None if forced is None else mx.broadcast_to(forced, (slots, 17))
    result, after = generator.step(mx.array(user), generator.follow(state), Ceiling.over(*CHOICES), given)
    mx.eval(result, arrays(after))
    return result, after


@pytest.mark.parametrize("slots", SLOTS)
def test_nobody_hears_who_is_beside(generator: Generator, slots: int) -> None:
    """Bit for bit, tokens and logits: others with other prompts, seeds, choices and sound, who wait, leave and come."""
    heard = []
    for others in (100, 200):
        state = stack([opened(generator, i and others + i) for i in range(slots)])
        said = []
        for n in range(STEPS):
            if n == 4 and others == 200:
                state = insert(state, slots - 1, trim(extract(stack([opened(generator, 77)] * 2), 1)))
            result, after = step(generator, state, n, others)
            moving = [True] + [others == 100 or (n + i) % 3 > 0 for i in range(1, slots)]
            state = advance_active(mx.array(moving), state, after)
            said.append([np.array(leaf[0].astype(mx.float32)) for leaf in result])
        heard.append(said)
    for one, other in zip(*heard, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("slots", SLOTS)
def test_how_many_are_beside_is_rounding(generator: Generator, slots: int) -> None:
    """Other numbers of slots are computed by other kernels, MLX's own too, that add up in another order: all tokens
    given, the logits are as near as the type's rounding.
    """
    heard = []
    for n_slots in (1, slots):
        state = stack([opened(generator, i) for i in range(n_slots)])
        said = []
        for n in range(STEPS):
            forced = mx.array(np.random.default_rng([9, n]).integers(0, 300, (1, 17)).astype(np.int32))
            result, state = step(generator, state, n, 100, forced)
            logits = (result.text_logits[0].reshape(-1), result.audio_logits[0].reshape(-1))
            said.append(np.concatenate([np.array(one.astype(mx.float32)) for one in logits]))
        heard.append(np.stack(said))
    alone, together = heard
    apart = np.sqrt(np.square(alone - together).mean() / np.square(alone).mean())
    assert apart < (1e-5 if generator.lm.dtype == mx.float32 else 0.03)
