"""`personaplex eval`: the evaluations, each a command of its own."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "all": "Every evaluation of one model, and one page of them.",
    "duplex": "When it speaks and when it listens: Full-Duplex-Bench's numbers.",
    "prompts": "Questions and the words of right answers, with many seeds.",
    "codec": "What the codec loses: recordings through it and back, beside Opus.",
    "voices": "Whether the model sounds like the voice it was given.",
}


class Evaluations(click.Group):
    """Imports an evaluation when it is called: `eval --help` needs none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, D102
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"personaplex.cli.eval_{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002, D102
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group("eval", cls=Evaluations)
def command() -> None:
    """Measure how good a model, a codec or a voice is: tables with 95 % intervals, and JSON to compare."""
