"""What every evaluation's command shares: its options, and how its result is kept and shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from personaplex.cli.options import note, seed_option
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import as_markdown

MOST_TOLD = 5
"""Of what could not be measured so many are told one by one; all of them are in the JSON file."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_JSON = click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the whole result there."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only the table, and errors on stderr.")
slots_option = click.option(
    "--slots", type=click.IntRange(1, 1024), metavar="N", default=4, show_default=True, help="Conversations at a time."
)


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --seed, --json FILE and --quiet."""
    return seed_option(result_options(command))


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json FILE and --quiet, for a command whose --seed is among its sampling options."""
    return _JSON(quiet_option(command))


def recogniser_option(what: str) -> Decorator:
    """Add --recogniser, whose default PERSONAPLEX_RECOGNISER sets; `what` it is for, and its default without that."""
    return click.option(
        "--recogniser", metavar="NAME[:MODEL]", envvar="PERSONAPLEX_RECOGNISER", show_envvar=True, help=what
    )


def show(result: Result, json_file: Path | None, *, quiet: bool = False) -> None:
    """Keep the result where it is wanted, print its table, and say what was not measured or not told apart.

    Where nothing could be measured it is kept, too, and no table is printed. Raises the result's `error` then.
    """
    if json_file is not None:
        result.save(json_file)
    for failure in result.failures[:MOST_TOLD]:
        note(f"not measured: {_told(failure)}")
    if (more := len(result.failures) - MOST_TOLD) > 0:
        note(f"not measured: {more} more")
    if result.error is None:
        click.echo(as_markdown(result.rows))
        _tell_controls(result, quiet=quiet)
    if json_file is not None:
        note(f"wrote {json_file}", quiet=quiet)
    if result.error is not None:
        raise result.error


def _told(failure: Failure) -> str:
    return failure.reason if failure.reason.startswith(failure.item) else f"{failure.item}: {failure.reason}"


def _tell_controls(result: Result, *, quiet: bool) -> None:
    for control in result.about.get("controls", ()):
        if control["held"] is False:
            note(
                f"warning: the control ({control['control']}) is not told from the real thing by {control['measure']}: "
                "these numbers do not tell good from bad"
            )
        elif control["held"] is None:
            note(
                f"note: too few recordings to say whether {control['measure']} tells the control "
                f"({control['control']})",
                quiet=quiet,
            )
