"""A group whose commands are modules of their own, imported when one is called: `--help` answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """`commands_help` maps each name to its line of help; its command is `command` of the module `prefix` + name."""

    def __init__(self, *arguments: Any, commands_help: Mapping[str, str], prefix: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._help, self._prefix = commands_help, prefix

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, D102
        return list(self._help)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, D102
        if cmd_name not in self._help:
            return None
        module = f"personaplex.cli.{self._prefix}{cmd_name}".replace("-", "_")
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002, D102
        with formatter.section("Commands"):
            formatter.write_dl(list(self._help.items()))
