"""`personaplex eval`: the evaluations, each a command of its own."""

from __future__ import annotations

import click

from personaplex.cli.group import LazyGroup

COMMANDS = {
    "all": "Every evaluation of one model, and one page of them.",
    "duplex": "When it speaks and when it listens: Full-Duplex-Bench's numbers.",
    "prompts": "Questions and the words of right answers, with many seeds.",
    "codec": "What the codec loses: recordings through it and back, beside Opus.",
    "voices": "Whether the model sounds like the voice it was given.",
}


@click.group("eval", cls=LazyGroup, commands_help=COMMANDS, prefix="eval_")
def command() -> None:
    """Measure how good a model, a codec or a voice is: tables with 95 % intervals, and JSON to compare."""
