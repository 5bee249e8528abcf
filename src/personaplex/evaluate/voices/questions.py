"""Questions to answer where nobody brought recordings: sentences nano was not trained on, nor their speakers."""

from __future__ import annotations

import numpy as np

from personaplex.dialogue import user_plan
from personaplex.speech import HELDOUT, say

_LEAST_WORDS = 4


def synthesised(n: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """n questions: what is said, and samples [S] at 24 kHz, the same for a seed. Raises SynthesisError."""
    rng, speakers = np.random.default_rng(seed), list(HELDOUT.values())
    lines: list[str] = []
    while len(lines) < n:
        plan = user_plan(rng, 4 * n + 20, "heldout")
        lines += [line.text for line in plan if len(line.text.split()) >= _LEAST_WORDS and line.text not in lines]
    return [(text, say(speakers[i % len(speakers)], text).pcm) for i, text in enumerate(lines[:n])]
