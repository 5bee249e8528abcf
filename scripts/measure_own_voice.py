"""What a model reads off its own voice: `python scripts/measure_own_voice.py --model DIR --bank FILE [--bank FILE]`.

Composes calls as training does, gives the model everything right up to each token, and prints how often its guess of
the next one is right, by kind of call: where the agent is heard as a synthesiser's clips, and as the model's own (in
the bank that `personaplex train own` wrote; without one that row is missing). On clips that no training had, a model
that reads its answers off clips is better on them than on its own voice, and one that does not know itself is worse.
`stops` are the first frames of silence in the text after a line's last word.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import personaplex  # noqa: F401 - before mlx, for its BLAS

import mlx.core as mx  # isort: skip
import numpy as np

from personaplex.errors import PersonaPlexError
from personaplex.model import PersonaPlex
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import TEXT
from personaplex.text import EPAD, PAD, Tokenizer
from personaplex.train.bank import OWN, Bank, join
from personaplex.train.compose import Composer, Composition

KINDS = ("words", "facts", "next words begin", "stops")


def count(lm: LanguageModel, composer: Composer, calls: int) -> np.ndarray:
    """How many tokens of each of `KINDS` are guessed right, and how many there are: [4, 2]."""
    found = np.zeros((len(KINDS), 2), int)
    for step in range(calls):
        batch = composer.batch(step, 1)
        z = lm.hidden(lm.columns(mx.array(batch.frames))[:, :-1], mx.array(batch.pinned))
        guessed, text = np.array(mx.argmax(lm.text_head(z), axis=-1))[0], batch.frames[0, TEXT]
        counts = batch.text_weight[0] > 0
        words = (text > PAD) & counts
        ends = np.flatnonzero(words[:-1] & (text[1:] == PAD)) + 1
        # A line's last word: no other one comes within two seconds.
        lasts = [at for at in ends if not (text[at : at + 25] != PAD).any() and at + 25 < len(text)]
        stops = np.zeros(len(text), bool)
        for at in lasts:
            stops[at : at + 12] = counts[at : at + 12]
        for row, these in enumerate((words, batch.fact[0], (text == EPAD) & counts, stops)):
            found[row] += (guessed == text)[these].sum(), these.sum()
    return found


def measure(lm: LanguageModel, bank: Bank, tokenizer: Tokenizer, calls: int, seed: int) -> str:
    """The table, in Markdown."""
    rows = ["| heard as | " + " | ".join(KINDS) + " |", "|" + "---|" * (len(KINDS) + 1)]
    plain = replace(Composition(), interruptions=0.0, backchannels=0.0, natural_text=1.0, unasked=0.0)
    for name, natural in (("clips", 1.0), ("its own voice", 0.0)):
        if natural or OWN in bank.kinds:
            composer = Composer(bank, tokenizer, replace(plain, natural=natural), seed)
            cells = [f"{right / max(n, 1):.3f} of {n}" for right, n in count(lm, composer, calls)]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True, action="append", help="as for `personaplex train lm`")
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    try:
        model, bank = PersonaPlex.from_pretrained(arguments.model), join([Bank.read(path) for path in arguments.bank])
        table = measure(model.lm, bank, model.tokenizer, arguments.calls, arguments.seed)
    except PersonaPlexError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(table)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
