"""`personaplex eval all`: every evaluation of one model, and the page of them, by one command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import click

from personaplex.cli.evaluation import quiet_option
from personaplex.cli.options import model_option, note, seed_option
from personaplex.errors import PersonaPlexError, UsageError
from personaplex.files import check_writable, make_folder, whole_file

NANO = "nano"
DEFAULT_SIZE, DEFAULT_FOLDER = 4, Path("evaluation")
PAGE = "report.html"
KEPT = "verify"
"""The folder of the answers that verify keeps."""


class Part(NamedTuple):
    """One evaluation: the module whose command it is, and the arguments that say how much of it, for a size."""

    module: str
    arguments: Callable[[int], list[str]]
    of_nano: bool = False


PARTS = {
    "verify": Part("verify", lambda size: ["--seeds", str(max(1, size // 4))]),
    "prompts": Part("eval_prompts", lambda size: ["basic", "--seeds", str(size)]),
    "held-out": Part("eval_prompts", lambda size: [NANO, "--size", str(size)], of_nano=True),
    "duplex": Part("eval_duplex", lambda size: ["--synthetic", str(size)]),
    "codec": Part("eval_codec", lambda size: ["--sentences", str(10 * size)]),
    "voices": Part("eval_voices", lambda size: ["--questions", str(max(1, size // 2))]),
}


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    names = value and [name.strip() for name in value.split(",")]
    if names and (unknown := set(names) - set(PARTS)):
        raise UsageError(f"there is no evaluation {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    return names or None


@click.command("all")
@model_option
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Where the results (JSON) and the page go.",
)
@click.option(
    "--size",
    metavar="N",
    type=click.IntRange(1),
    default=DEFAULT_SIZE,
    show_default=True,
    help="How much of everything: more makes the intervals narrower, and takes longer.",
)
@click.option("--only", metavar="NAME,...", callback=_names, help=f"Some of {', '.join(PARTS)}.")
@click.option(
    "--audio",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Recordings that the page shows answered, beside verify's questions.",
)
@click.option("--card", metavar="FILE", type=click.Path(path_type=Path), help="Write the tables into this model card.")
@seed_option
@quiet_option
def command(
    model: str,
    out: Path,
    size: int,
    only: list[str] | None,
    audio: tuple[Path, ...],
    card: Path | None,
    seed: int,
    quiet: bool,
) -> None:
    """Verify a model, run every evaluation on it, and make one page of all.

    Each result is kept in FOLDER as soon as it is there; an evaluation that cannot be run is named, and the others are.
    The page shows the answers that verify heard, which are kept in FOLDER/verify, and those to --audio. Ends with the
    first error's exit code, 13 for a model that its verification refuses. --card puts the tables between the lines
    `<!-- report -->` and `<!-- /report -->` of a file.
    """
    from personaplex.evaluate.result import Result
    from personaplex.evaluate.row import as_markdown, put_between

    page = None
    if card is not None:
        try:
            page = card.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--card {card} is no file that can be read as text: {error}") from error
        put_between(page, "", "report")  # its lines are there, or nothing is begun
    chosen = dict(_chosen(only, model, quiet=quiet))
    if not chosen:
        raise UsageError(f"nothing is left to run: {', '.join(only or PARTS)} is the test of the model in this package")
    _check_audio(audio)
    _check_out(out, chosen)
    errors: list[PersonaPlexError] = []
    made: list[Path] = []
    asked, quietly = ["--model", model, "--seed", str(seed)], ["--quiet"] if quiet else []
    try:
        for name, part in chosen.items():
            click.echo(f"## {name}\n")
            result = out / f"{name}.json"
            keep = ["--keep", str(out / KEPT)] if name == "verify" else []
            result.unlink(missing_ok=True)  # what is there afterwards is this run's
            _run(name, part.module, [*part.arguments(size), *asked, *quietly, "--json", str(result), *keep], errors)
            if result.is_file():
                made.append(result)
            click.echo("")
        if not made and errors:
            raise errors[0]
        click.echo("## the page\n")
        answered = [*asked, *(part for path in audio for part in ("--audio", str(path)))] if audio else []
        sources = [*map(str, made), *map(str, _kept(out, made))]
        _run("report", "report", [*sources, *answered, *quietly, "-o", str(out / PAGE)], errors)
    except (click.Abort, KeyboardInterrupt) as error:
        raise click.Abort(_left(out, made)) from error
    if card is not None and page is not None:
        tables = [f"### {path.stem}\n\n{as_markdown(Result.load(path).rows)}" for path in made]
        with whole_file(card) as temporary:
            temporary.write_text(put_between(page, "\n\n".join(tables), "report"), encoding="utf-8")
    if errors:
        raise errors[0]


def _check_audio(paths: tuple[Path, ...]) -> None:
    """Raise AudioError for a recording, or a folder of which all, cannot be read: now and not after an hour."""
    from personaplex.evaluate.recordings import find_recordings

    for path in paths:
        broken, found = [], find_recordings([path])
        for recording in found:
            try:
                recording.read()
            except PersonaPlexError as error:
                broken.append(error)
        if len(broken) == len(found):
            raise broken[0]


def _check_out(out: Path, chosen: Iterable[str]) -> None:
    """Make the folder; everything can be written into it, or OutputError says what cannot."""
    make_folder(out, "--out")
    for name in (PAGE, Path(PAGE).with_suffix(".json").name, *(f"{part}.json" for part in chosen)):
        check_writable(out / name)
    if "verify" in chosen:
        make_folder(out / KEPT, "--out")


def _kept(out: Path, made: Iterable[Path]) -> list[Path]:
    """The recordings of this run's answers: others may lie in their folder."""
    from personaplex.evaluate.result import Result

    items = [item for path in made if path.stem == "verify" for item in Result.load(path).items]
    return [out / KEPT / str(item["kept"]) for item in items if item.get("kept")]


def _left(out: Path, made: list[Path]) -> str:
    """What an interrupted run leaves, in words."""
    if not made:
        return f"no result was written into {out}"
    names, folders = ", ".join(path.name for path in made), [out, *([out / KEPT] if (out / KEPT).is_dir() else [])]
    page = f"personaplex report {' '.join(map(str, folders))} -o {out / PAGE}"
    return f"{out} holds {names} so far, without the rest; `{page}` makes a page of them"


def _chosen(only: list[str] | None, model: str, *, quiet: bool) -> Iterator[tuple[str, Part]]:
    for name, part in PARTS.items():
        if only is None or name in only:
            if part.of_nano and model != NANO:
                if only is not None:
                    note(f"{name} is the test of the model in this package alone; left out", quiet=quiet)
                continue
            yield name, part


def _run(name: str, module: str, arguments: list[str], errors: list[PersonaPlexError]) -> None:
    """Run a command in this process; what is wrong with it is said, and does not end the others."""
    part = import_module(f"personaplex.cli.{module}").command
    try:
        # A command keeps the first help option that it is asked for: it must be the one of this program.
        names = click.get_current_context().help_option_names
        part.main(args=arguments, prog_name=f"personaplex {name}", standalone_mode=False, help_option_names=names)
    except PersonaPlexError as error:
        errors.append(error)
        note(f"{name}: {error}")
