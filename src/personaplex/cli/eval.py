"""`personaplex eval`: how good a model is, measured."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "codec": "What the codec loses: recordings through it and back, beside Opus.",
    "voices": "Whether the model sounds like the voice it was given.",
}


class Evaluations(click.Group):
    """Imports an evaluation when it is called, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, D102
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"personaplex.cli.eval_{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002, D102
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group("eval", cls=Evaluations)
def command() -> None:
    """How good a model is, in numbers with their intervals: a table on stdout, and a file of all with --json."""
