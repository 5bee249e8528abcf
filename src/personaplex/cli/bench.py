"""`personaplex bench`: measure this machine."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import click

from personaplex.bench import BENCHES, SPEED
from personaplex.cli.cascade import cascade_options, parts_of, pauses_of
from personaplex.cli.options import note_blas
from personaplex.errors import UsageError
from personaplex.files import check_writable, whole_file

OPTIONS = {
    "callers": ("serve",),
    "url": ("serve",),
    "plot": ("serve", "step", "sessions"),
    "bits": ("step", "prefill", "sessions", "startup", "all"),
    "kv_bits": ("step", "prefill", "sessions", "all"),
    "context": ("step",),
    "sessions": ("sessions", "prefill", "codec", "all"),
    "save": tuple(SPEED),
    "compiled": ("load", "engine", "step", "prefill", "sessions", "startup", "all"),
}
"""Which benchmark an option is for, where it is not for every one of them."""

FRAMES = 100
"""Of the benchmarks that do not choose for themselves."""


@click.command("bench")
@click.argument("name", type=click.Choice(sorted(BENCHES)))
@click.option("--model", metavar="DIR|REPO|random:SIZE", help="Weights to measure with; random:7b, random:small or "
              "random:FOLDER (the size in its config.json) are made in memory [default: random weights of the real "
              "size, on a CPU of the bundled model's].")  # fmt: skip
@click.option("--frames", type=click.IntRange(1), help="Repetitions [default: what suits benchmark and machine].")
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Compile the step (default: as `respond` does here); `load` times its first frame too.",
)
@click.option("--bits", metavar="N,N,...", help="Weights in 16, 8 or 4 bits, one after the other [default: as stored].")
@click.option("--kv-bits", metavar="N,N", help="Keys and values in 16 or 8 bits [default: 16].")
@click.option("--context", metavar="N,N,...", help="step: frames remembered [default: 0, a quarter, a half, all].")
@click.option("--sessions", metavar="N,N,...", help="sessions, prefill, codec, all: callers on one device.")
@click.option(
    "--kernels",
    type=click.Choice(["auto", "stock"]),
    help="On an NVIDIA card: this package's kernels where there are any, or MLX's own operations alone [default: as "
    "PERSONAPLEX_KERNELS says, or auto].",
)
@click.option("--callers", metavar="N,N,...", help="serve: callers at once, one run for each [default: 1,2,4].")
@click.option("--url", help="serve: a server that runs already, instead of --model.")
@click.option("--token", envvar="PERSONAPLEX_TOKEN", show_envvar=True, help="serve: the token of --url.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="step, sessions, serve: draw times by context, by callers (SVG).",
)
@click.option(
    "--compare",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="An earlier report (its JSON line): say how each row stands to it, and how the machines differ.",
)
@click.option("--save", is_flag=True, default=None, help="Benchmarks of speed: keep the JSON line in benchmarks/.")
@cascade_options
@click.option("--json", "as_json", is_flag=True, help="Only the JSON line.")
def command(
    name: str,
    model: str | None,
    frames: int | None,
    token: str | None,
    kernels: str | None,
    compare: Path | None,
    as_json: bool,
    **rest: Any,
) -> None:
    """Measure this machine: a table, and as the last line of stdout one JSON object.

    The benchmarks of speed need no weights: step (the language model by context and precision, and a whole frame),
    codec (Mimi frame by frame), prefill (voice and role: read, from memory, from disk), sessions (many callers on one
    device), startup (from the start of the program to its first sound), all (all of these). They say what the machine
    can do at most, measured, and how near they come; --frames are repetitions.

    The others: load (a model from disk, its memory, its frames), engine (many conversations at once: step time by
    slots, and how long until one is ready), cascade (recogniser, language model and voice: each, first audio, all
    audio, with and without streaming by sentences, and how soon each can be stopped; --frames are questions), serve
    (callers at once over real sockets, in real time: each frame's way there and back, missed deadlines, underruns,
    first audio; --frames of 80 ms each).

    The object holds bench, machine, mlx, commit and rows, each row with p50_ms, p95_ms, p99_ms and max_ms.
    """
    given = {option: rest.pop(option, None) for option in OPTIONS}
    _check(name, given, rest)
    if given["plot"] is not None:
        check_writable(given["plot"])
    if kernels is not None:
        os.environ["PERSONAPLEX_KERNELS"] = kernels  # before anything is built

    from personaplex.bench.compare import comparison, read_report
    from personaplex.bench.report import as_line, as_table, kept

    earlier = read_report(compare) if compare else None
    note_blas()
    module = importlib.import_module(f"personaplex.bench.{name}")
    report = _report(name, module, model, frames, token, given, rest)
    if given["plot"] is not None:
        with whole_file(given["plot"]) as path:
            path.write_text(module.picture(report["rows"]), encoding="utf-8")
    if not as_json:
        click.echo(as_table(report, module.__doc__ or ""))
        click.echo()
    if earlier is not None:
        click.echo("\n".join([*comparison(report, earlier), ""]), err=as_json)
    if given["save"]:
        click.echo(f"kept in {kept(report)}", err=True)
    click.echo(as_line(report))


def _check(name: str, given: dict[str, Any], engines: dict[str, Any]) -> None:
    """Refuse what is for another benchmark."""
    for option, benches in OPTIONS.items():
        if given[option] is not None and name not in benches:
            said = "compile" if option == "compiled" else option.replace("_", "-")
            raise UsageError(f"--{said} is for {', '.join(f'`bench {bench}`' for bench in benches)}")
    named = next((option for option, value in engines.items() if value is not None), None)
    if name != "cascade" and named is not None:
        raise UsageError(f"--{named.replace('_', '-')} is for `bench cascade`")


def _report(
    name: str,
    module: Any,
    model: str | None,
    frames: int | None,
    token: str | None,
    given: dict[str, Any],
    engines: dict[str, Any],
) -> dict[str, Any]:
    """Measure."""
    from personaplex.bench.report import as_report, as_words

    if name in SPEED:
        from personaplex.bench.roof import roof

        rows = []
        for row in module.run(_wanted(model, frames, given)):
            # Some take minutes each: what was measured is seen, also when the rest is given up.
            click.echo(as_words(row), err=True)
            rows.append(row)
        return as_report(name, rows, roof().as_json())
    more: tuple[Any, ...] = ()
    if name == "cascade":
        more = (parts_of(engines), pauses_of(engines))
    elif name == "serve":
        callers = module.CALLERS if given["callers"] is None else counts(given["callers"], "callers")
        more = (callers, given["url"], token)
    return as_report(name, module.run(model, frames or FRAMES, given["compiled"], *more))


def _wanted(model: str | None, frames: int | None, given: dict[str, Any]) -> Any:
    from personaplex.bench.wanted import Wanted

    def numbers(option: str, among: tuple[int, ...] = (), least: int = 1) -> tuple[int, ...] | None:
        text = given[option]
        return None if text is None else tuple(counts(text, option.replace("_", "-"), among, least))

    return Wanted(
        model,
        frames,
        given["compiled"],
        bits=numbers("bits", (16, 8, 4)) or (),
        kv_bits=numbers("kv_bits", (16, 8)) or (16,),
        context=numbers("context", least=0),
        sessions=numbers("sessions"),
    )


def counts(text: str, option: str, among: tuple[int, ...] = (), least: int = 1) -> list[int]:
    """Numbers as they are typed, in their order, each once. Raises UsageError."""
    try:
        found = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = []
    if not found or min(found) < least or (among and not set(found) <= set(among)):
        expected = f"some of {','.join(map(str, among))}" if among else f"numbers from {least}, as in 1,2,4"
        raise UsageError(f"--{option} is {text!r}; expected {expected}, with commas between them")
    return found
