"""Speech to measure with where nobody brought any: sentences nano was not trained on, nor their speakers."""

from __future__ import annotations

import numpy as np

from personaplex.dialogue import user_plan
from personaplex.evaluate.recordings import Recording
from personaplex.speech import HELDOUT, say

_LEAST_WORDS = 4


def synthesised(n: int, seed: int) -> list[Recording]:
    """n sentences that users say, named by their words, the same for a seed. Raises SynthesisError."""
    rng, speakers = np.random.default_rng(seed), list(HELDOUT.values())
    lines: list[str] = []
    while len(lines) < n:
        plan = user_plan(rng, 4 * n + 20, "heldout")
        lines += [line.text for line in plan if len(line.text.split()) >= _LEAST_WORDS and line.text not in lines]
    return [Recording(text, say(speakers[i % len(speakers)], text).pcm) for i, text in enumerate(lines[:n])]
