"""A run of the language model alone, every token and logit kept."""

from __future__ import annotations

import mlx.core as mx

from personaplex.engine.generator import Generator, Step
from personaplex.engine.prompt import Prompt
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.units import N_CODEBOOKS

NOTHING = -9
"""In `out`, where a call returned nothing."""


def run_trace(
    generator: Generator, prompt: Prompt, user_codes: mx.array, sampling: Sampling, seed: int, *, shifted: bool = False
) -> dict[str, mx.array]:
    """Step through user_codes [1, 8, N] after `prompt`.

    Returns `out` [1, 17, N] int32, `text_logits` [N, text_card], `audio_logits` [N, 8, card] (float32; zero where
    a call computed nothing) and `offset_after_prompt` (P). Row n belongs to the call that was given user frame n;
    `shifted` puts what the reference returns there, which is our row n - 1.
    """
    before, state = generator.prefill(prompt, seed=seed, sampling=sampling)
    ceiling = Ceiling.over(sampling)
    steps: list[Step | None] = [before] if shifted else []
    for n in range(user_codes.shape[2] - len(steps)):
        step, state = generator.step(user_codes[:, :, n], state, ceiling)
        mx.eval(step, state)
        steps.append(step)
    lm = generator.config.lm
    nothing = Step(
        mx.full((1, 17), NOTHING, mx.int32),
        mx.array([False]),
        mx.zeros((1, lm.dim)),
        mx.zeros((1, lm.text_card)),
        mx.zeros((1, N_CODEBOOKS, lm.card)),
    )
    rows = [step or nothing for step in steps]
    return {
        "out": mx.stack([mx.where(row.valid[:, None], row.tokens, NOTHING) for row in rows], axis=2),
        "text_logits": mx.concatenate([row.text_logits.astype(mx.float32) for row in rows]),
        "audio_logits": mx.concatenate([row.audio_logits[:, :N_CODEBOOKS].astype(mx.float32) for row in rows]),
        "offset_after_prompt": mx.array(prompt.n_frames, mx.int32),
    }
