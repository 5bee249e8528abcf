"""Say whose voice a blend is nearest to: `python scripts/measure_blend.py --model DIR|REPO --voices A B`.

The model answers a question in each of its own voices, and in blends of A and B. A plain embedding of pitch and
spectrum (`speech/identity.py`) says which of the voices each answer is nearest to. At the weights 0 and 1 the blend is
A and B: how often they are recognised there is the most that can be expected between.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import personaplex

import numpy as np  # isort: skip

from personaplex.engine.prompt import as_embeddings
from personaplex.speech.identity import NearestVoice, embedding
from personaplex.voice import Voice, blend

QUESTION = Path(__file__).parents[1] / "examples" / "question.wav"


def answers(
    model: personaplex.PersonaPlex, voice: Voice | str, seeds: range, options: argparse.Namespace
) -> list[np.ndarray]:
    """What the model says in a voice, once for each seed: its embeddings."""
    replies = (model.respond(options.input, voice=voice, seed=s, max_seconds=options.max_seconds) for s in seeds)
    return [embedding(reply.audio) for reply in replies]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True)
    parser.add_argument("--voices", nargs=2, required=True, metavar=("A", "B"))
    parser.add_argument("--others", nargs="*", help="voices it could be taken for (default: all of the model's)")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--answers", type=int, default=10, help="answers for each row (default 10)")
    parser.add_argument("--input", type=Path, default=QUESTION)
    parser.add_argument("--max-seconds", type=float, default=8.0, help="how long an answer may take (default 8)")
    options = parser.parse_args(arguments)
    model = personaplex.PersonaPlex.from_pretrained(options.model)
    known = dict.fromkeys([*options.voices, *(model.list_voices() if options.others is None else options.others)])
    seeds, others = range(options.answers), range(1000, 1000 + options.answers)
    examples = {}
    for name in known:
        print(f"listening to {name}", file=sys.stderr)  # noqa: T201
        examples[name] = answers(model, name, seeds, options)
    nearest = NearestVoice(examples)
    first, second = (as_embeddings(model.lm, model.config, model.load_voice(name)) for name in options.voices)
    print(f"| weight of {options.voices[1]} | nearest to | distance to {' and '.join(options.voices)} |\n|---|---|---|")  # noqa: T201
    for weight in options.weights:
        found = answers(model, blend(first, second, weight, "blend"), others, options)
        distances = np.array([nearest.distances(one) for one in found])
        counts = Counter(nearest.names[at] for at in distances.argmin(axis=1))
        shares = ", ".join(f"{name} {n}/{len(found)}" for name, n in counts.most_common())
        far = " and ".join(f"{np.median(distances[:, nearest.names.index(name)]):.1f}" for name in options.voices)
        print(f"| {weight:g} | {shares} | {far} |")  # noqa: T201


if __name__ == "__main__":
    main()
