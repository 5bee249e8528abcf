"""Does a model read its answers off its own voice? `python scripts/measure_beginnings.py --model DIR --bank FILE`.

Composes calls as training does, gives the model the right words and codes up to each word that holds a fact, and prints
how often its guess of that word's first piece is right, by the answer's kind: with answers that are each one clip, and
with answers whose beginnings come from any clip that begins with the same words (train/splice.py), as they do when the
model draws them itself. The more the second falls behind the first, the more was read off the sound of the beginning.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import personaplex  # noqa: F401 - before mlx, for its BLAS

import mlx.core as mx  # isort: skip
import numpy as np

from personaplex.dialogue import Line, key_words
from personaplex.errors import PersonaPlexError
from personaplex.model import PersonaPlex
from personaplex.models.lm import LanguageModel
from personaplex.train.bank import Bank
from personaplex.train.compose import Composer, Composition, Reply, _Call
from personaplex.train.splice import Splicer

SKIPPED = ("greet",)
"""Said before the user has spoken, and so long that its facts are a prompt's whole test: counted by the evaluation."""


class Clips:
    """Says only what was recorded, as it was recorded, where a `Splicer` says any line from pieces."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def can_say(self, _: int, line: Line) -> bool:  # noqa: ARG002
        """Whether it may say another line than a clip's."""
        return False

    def say(self, _: np.random.Generator, clip: int, line: Line) -> tuple[np.ndarray, list[tuple[int, int]]]:  # noqa: ARG002
        """The clip's codes [F, 8], and each word with the frame it begins in."""
        return self._bank.clip(clip), [(int(word), int(first)) for word, first, *_ in self._bank.words_of(clip)]


class Call(_Call):
    """A call that notes where the first fact of each answer stands: (intent, frame)."""

    def _agent(self, reply: Reply, at: int) -> int:
        end, line = super()._agent(reply, at), reply.line
        marked = np.flatnonzero(self.line.fact[at:end])
        # A fact that is the first word cannot be read off anything.
        if line.intent not in SKIPPED and line.text.split()[0] not in key_words(line) and len(marked):
            self.__dict__.setdefault("noted", []).append((line.intent, at + int(marked[0])))
        return end


def count(lm: LanguageModel, composer: Composer, calls: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """Facts guessed right, and all of them, by intent."""
    right, asked = Counter[str](), Counter[str]()
    for number in range(calls):
        call = Call(composer, np.random.default_rng([seed, number]))
        line, _ = call.compose()
        columns = lm.columns(mx.array(line.frames)[None])
        z = lm.hidden(columns[:, :-1], mx.array([line.pinned]))
        guessed = np.array(mx.argmax(lm.text_head(z), axis=-1))[0]
        # An interruption may have taken an answer back before its fact.
        said = [(intent, at) for intent, at in call.__dict__.get("noted", []) if line.fact[at]]
        asked.update(intent for intent, _ in said)
        right.update(intent for intent, at in said if guessed[at] == line.frames[0, at])
    return right, asked


def measure(model: PersonaPlex, bank: Bank, composition: Composition, calls: int, seed: int) -> str:
    """The table, in Markdown."""
    composer = Composer(bank, model.tokenizer, composition, seed)
    pieces: Splicer = composer.splicer
    counted = []
    for voice in (Clips(bank), pieces):
        composer.splicer = voice  # type: ignore[assignment]
        counted.append(count(model.lm, composer, calls, seed))
    lines = ["| answer | as one clip | n | begun as any clip | n |", "|---|---|---|---|---|"]
    for intent in sorted(counted[0][1], key=lambda name: -counted[0][1][name]):
        cells = [f"{right[intent] / max(asked[intent], 1):.2f} | {asked[intent]}" for right, asked in counted]
        lines.append(f"| {intent} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a model that was trained on the bank")
    parser.add_argument("--bank", type=Path, required=True, help="what `personaplex train bank` wrote")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--text-lead", type=int, default=Composition.text_lead, help="as the model was trained")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        model, bank = PersonaPlex.from_pretrained(arguments.model), Bank.read(arguments.bank)
        composition = Composition(text_lead=arguments.text_lead, natural=0)
        table = measure(model, bank, composition, arguments.calls, arguments.seed)
    except PersonaPlexError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(table)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
