"""How a prompt is best kept in a call of many windows: `python scripts/measure_pinning.py --model DIR --bank FILE`.

Composes calls as training does, but long ones (the bank is what `personaplex train bank` wrote), reads each in one pass
with the right words given, and prints how many of the words that are facts of the prompt were guessed right: without
pinning, with the prompt pinned where it was read, and with a pinned prompt that follows the window (nn/sinks.py).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import personaplex  # noqa: F401 - before mlx, for its BLAS

import mlx.core as mx  # isort: skip
import numpy as np

from personaplex.errors import PersonaPlexError
from personaplex.model import PersonaPlex
from personaplex.models.lm import LanguageModel
from personaplex.nn.rope import open_rotation
from personaplex.nn.sinks import due_shift
from personaplex.train.bank import Bank
from personaplex.train.compose import Composer, Composition

WAYS = ("not pinned", "pinned where read", "pinned, following")
GREETING = 60
"""Frames after the prompt in which an agent may greet: its name there is no answer."""


def guesses(lm: LanguageModel, columns: np.ndarray, pinned: int, way: str) -> np.ndarray:
    """Columns [T, 17] -> the likeliest text token after each [T]; attention over all pairs at once."""
    config, n = lm.config, len(columns)
    head, position = config.dim // config.num_heads, np.arange(n)
    distance = position[:, None] - position
    near = (distance < config.context) | ((position < pinned) & (way != WAYS[0]))
    seen = mx.array((distance >= 0) & near)
    shift = due_shift(position, np.full(n, pinned), config.context) * (way == WAYS[2])
    here, nearer = (open_rotation(mx.array(p)[None], head, config.max_period) for p in (position, position - shift))
    x = lm.embed(mx.array(columns)[None])[0]
    for layer in lm.temporal.layers:
        qkv = layer.attention.in_proj(layer.norm1(x)).reshape(1, n, 3, config.num_heads, head)
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
        k = here(k)
        to_prompt = nearer(q) @ k[:, :, :pinned].swapaxes(2, 3)
        scores = mx.concatenate([to_prompt, here(q) @ k[:, :, pinned:].swapaxes(2, 3)], axis=3)
        heard = mx.softmax(mx.where(seen, scores * head**-0.5, -mx.inf), axis=-1) @ v
        x = layer.scale1(x, layer.attention.out_proj, heard.swapaxes(1, 2).reshape(n, -1))
        x = layer.scale2(x, layer.feedforward.last, layer.feedforward(layer.norm2, x))
        mx.eval(x)
    return np.array(mx.argmax(lm.text_head(lm.out_norm(x)), axis=-1))


def measure(model: PersonaPlex, bank: Bank, calls: int, windows: int, seed: int) -> str:
    """The table, in Markdown: one row a way, one column a stretch of the calls."""
    lm, context = model.lm, model.config.lm.context
    length = context * windows
    alone = Composition(n_frames=length, context=context, pinned=1.0, service=1.0, noisy=0.0, quiet_calls=0.0)
    plain = replace(alone, interruptions=0.0, backchannels=0.0, long_silence=0.0)
    # Clips of synthesisers, which every bank has; that they answer what was asked, and that their facts are counted.
    composer = Composer(bank, model.tokenizer, replace(plain, natural=1.0, natural_text=1.0, unasked=0.0), seed)
    edges = [0, *sorted({context, 2 * context, 4 * context, length})]
    right, asked = np.zeros((len(WAYS), len(edges) - 1)), np.zeros(len(edges) - 1, int)
    for number in range(calls):
        line, start = composer.dialogue(np.random.default_rng([seed, number]))
        columns = np.array(lm.columns(mx.array(line.frames)[None]))[0]
        fact = line.fact & (np.arange(length) >= start + GREETING)
        stretches = [np.flatnonzero(fact[a:b]) + a for a, b in pairwise(edges)]
        asked += [len(at) for at in stretches]
        for row, way in enumerate(WAYS):
            guessed = guesses(lm, columns[:-1], start - 1, way) == line.frames[0]
            right[row] += [guessed[at].sum() for at in stretches]
    head = "| frames | " + " | ".join(f"to {edge}" for edge in edges[1:]) + " |\n|" + "---|" * len(edges)
    shares = [[f"{x / n:.2f}" if n else "-" for x, n in zip(row, asked, strict=True)] for row in right]
    rows = [f"| {way} | " + " | ".join(share) + " |" for way, share in zip(WAYS, shares, strict=True)]
    return "\n".join([head, *rows, "| words | " + " | ".join(map(str, asked)) + " |"])


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=6)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--seed", type=int, default=5)
    a = parser.parse_args()
    mx.set_default_device(mx.cpu)  # there a rotation takes any positions, elsewhere only those that follow each other
    try:
        print(measure(PersonaPlex.from_pretrained(a.model), Bank.read(a.bank), a.calls, a.windows, a.seed))  # noqa: T201
    except PersonaPlexError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
