"""Measure nano: make the test, talk through it, listen, count. `python scripts/evaluate_nano.py STAGE --help`.

    items      --out DIR                              what the users say, and what would be right
    generate   --model DIR --items DIR --out DIR      the conversations (the stage for a machine with an accelerator)
    score      --items DIR --generated DIR            the table
    codec      --model DIR                            the codec by itself
    speed      --model DIR                            a frame's time on this machine

Each stage reads what the one before wrote, so they may run on different machines; `items` gives the same questions for
the same seed everywhere. --json adds a stage's rows to a file, from which a later stage prints those of all, and --card
writes what was printed into the model card.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import personaplex  # noqa: F401 - before mlx, for its BLAS

import numpy as np  # isort: skip

from personaplex.errors import PersonaPlexError, UsageError
from personaplex.evaluate.nano import conversation, items, outcome, recogniser, table
from personaplex.evaluate.row import Row, as_json, as_markdown, from_json, put_between
from personaplex.evaluate.statistics import median_interval
from personaplex.files import whole_file
from personaplex.models.mimi import Mimi
from personaplex.units import FRAME_SECONDS


def note(text: str) -> None:
    """Say how far a stage is."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def make_items(arguments: argparse.Namespace) -> list[Row]:
    """Stage 1."""
    tests = arguments.tests.split(",") if arguments.tests else items.TESTS[:-1]
    made, clips = items.make_items(arguments.per_row, arguments.seed, tests)
    items.save_items(arguments.out, made, clips)
    note(f"{len(made)} items, {len(clips) / 24_000 / 60:.0f} minutes of users")
    return []


def generate(arguments: argparse.Namespace) -> list[Row]:
    """Stage 2."""
    from personaplex.model import PersonaPlex

    chosen = [
        i for i in items.load_items(arguments.items) if not arguments.tests or i.test in arguments.tests.split(",")
    ]
    if arguments.every > 1:
        chosen = chosen[:: arguments.every]
    model = PersonaPlex.from_pretrained(arguments.model)
    talks = conversation.converse(
        model,
        chosen,
        items.load_clips(arguments.items),
        batch=arguments.batch,
        pinned_frames=arguments.pinned,
        say=note,
    )
    conversation.save(arguments.out, list(talks))
    return []


def score(arguments: argparse.Namespace) -> list[Row]:
    """Stage 3."""
    from personaplex.dialogue import grammar

    test = items.load_items(arguments.items)
    talks = conversation.load(arguments.generated)
    if any(len(item.turns) != len(talks[item.number].began) for item in test if item.number in talks):
        raise UsageError(
            f"{arguments.generated} was generated from other items than {arguments.items}; generate it anew"
        )
    listened = [item.number for item in test if item.listened and item.number in talks]
    heard: list[list[str]] = []
    if not arguments.deaf and listened:
        sounds = [outcome.sound_of_answer(talks[number]) for number in listened]
        heard = recogniser.hear_all(sounds, recogniser.network(grammar()), processes=arguments.processes)
    made = table.rows(test, talks, dict(zip(listened, heard, strict=False)))
    if arguments.model:
        from personaplex.evaluate.nano.codec import nearest_voice

        nearest = nearest_voice(load_codec(arguments.model), seed=0)
        made += table.voices(test, talks, nearest)
    return made


def load_codec(model: str) -> Mimi:
    """The codec of a model."""
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import CODEC_FILES, resolve

    return ModelFolder(Path(resolve(model, CODEC_FILES))).load_mimi()


def measure_codec(arguments: argparse.Namespace) -> list[Row]:
    """Stage 4."""
    from personaplex.evaluate.nano import codec

    return codec.rows(load_codec(arguments.model), arguments.per_row, arguments.seed, processes=arguments.processes)


def speed(arguments: argparse.Namespace) -> list[Row]:
    """Stage 5."""
    from personaplex.bench import load
    from personaplex.bench.machine import describe_machine

    ms = next(row.ms for row in load.run(arguments.model, arguments.frames) if row.name == "frame")
    about = describe_machine()
    machine = f"{about['cpu']}, {about['cores']} cores"
    factors = [t / (1000 * FRAME_SECONDS) for t in ms]
    p50, p99 = (float(np.percentile(ms, p)) for p in (50, 99))
    nothing = (float("nan"), float("nan"))
    return [
        Row(f"whole frame, real-time factor ({machine})", float(np.mean(factors)), nothing, len(ms), 0.5, True),
        Row("whole frame, median", p50, median_interval(ms), len(ms), unit="ms"),
        Row("whole frame, 99th percentile", p99, nothing, len(ms), unit="ms"),
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = top.add_subparsers(required=True, metavar="STAGE")

    def stage(name: str, run: object, *options: str) -> argparse.ArgumentParser:
        command = stages.add_parser(name, help=getattr(run, "__doc__", ""))
        command.set_defaults(run=run)
        for option in options:
            command.add_argument(f"--{option}", type=Path, required=True)
        return command

    made = stage("items", make_items, "out")
    made.add_argument("--per-row", type=int, default=200)
    made.add_argument("--seed", type=int, default=20)
    made.add_argument("--tests", help=f"some of {','.join(items.TESTS)} (default: all but long)")
    talked = stage("generate", generate, "items", "out")
    talked.add_argument("--model", required=True)
    talked.add_argument("--batch", type=int, default=64)
    talked.add_argument("--tests", help="only these")
    talked.add_argument("--pinned", type=int, default=256, help="longest prompt that stays in view; 0: none does")
    talked.add_argument("--every", type=int, default=1, help="only every n-th item, for a quick look")
    scored = stage("score", score, "items", "generated")
    scored.add_argument("--model", help="to measure whose voice the answers are nearest to")
    scored.add_argument("--deaf", action="store_true", help="without the recogniser")
    coded = stage("codec", measure_codec)
    coded.add_argument("--model", required=True)
    coded.add_argument("--per-row", type=int, default=200)
    coded.add_argument("--seed", type=int, default=21)
    timed = stage("speed", speed)
    timed.add_argument("--model", required=True)
    timed.add_argument("--frames", type=int, default=500)
    for command in (scored, coded):
        command.add_argument("--processes", type=int, default=0, help="recognisers at once (default: one a core)")
    for command in (scored, coded, timed):
        command.add_argument("--json", type=Path, help="file of rows by stage, to add these to")
        command.add_argument("--card", type=Path, help="the model card to write the table into")
    return top


def report(stage: str, made: list[Row], arguments: argparse.Namespace) -> None:
    """Print the rows, and keep them where asked to."""
    if not made:
        return
    kept = {stage: made}
    if arguments.json:
        stored = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        stored[stage] = as_json(made)
        with whole_file(arguments.json) as name:
            name.write_text(json.dumps(stored, indent=1))
        kept = {name: from_json(rows) for name, rows in sorted(stored.items(), key=lambda s: s[0] != "score")}
    markdown = as_markdown([row for rows in kept.values() for row in rows])
    print(markdown)  # noqa: T201
    if arguments.card:
        page = put_between(arguments.card.read_text(), markdown)
        with whole_file(arguments.card) as name:
            name.write_text(page)


def main() -> int:
    """Run one stage."""
    arguments = parser().parse_args()
    try:
        report(arguments.run.__name__, arguments.run(arguments), arguments)
    except PersonaPlexError as error:
        note(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
