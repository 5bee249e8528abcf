"""What every `personaplex eval` command shares: its options, and how its result is shown and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from personaplex.cli.options import note
from personaplex.evaluate.result import Result
from personaplex.evaluate.row import as_markdown

_OPTIONS = [
    click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same numbers."),
    click.option(
        "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the whole result there."
    ),
]


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --seed and --json FILE."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def show(result: Result, json_file: Path | None) -> None:
    """Keep the result where it is wanted, print its table, and say what was not measured or not told apart."""
    if json_file is not None:
        result.save(json_file)
    click.echo(as_markdown(result.rows))
    if result.failures:
        item, reason = result.failures[0].item, result.failures[0].reason
        first = reason if item in reason else f"{item}: {reason}"
        note(f"{len(result.failures)} could not be measured; the first: {first}")
    for control in result.about.get("controls", ()):
        if control["held"] is False:
            note(
                f"warning: the control ({control['control']}) is not told from the real thing by {control['measure']}: "
                "these numbers do not tell good from bad"
            )
        elif control["held"] is None:
            note(
                f"note: too few recordings to say whether {control['measure']} tells the control ({control['control']})"
            )
    if json_file is not None:
        note(f"wrote {json_file}")
