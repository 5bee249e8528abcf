"""`personaplex bench`: measure this machine."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from personaplex.bench import BENCHES
from personaplex.cli.cascade import cascade_options, parts_of, pauses_of
from personaplex.cli.options import note_blas
from personaplex.errors import UsageError
from personaplex.files import check_writable, whole_file


@click.command("bench")
@click.argument("name", type=click.Choice(list(BENCHES)))
@click.option("--model", metavar="DIR|REPO", help="Weights to measure with (default: the real size, random values).")
@click.option("--frames", type=click.IntRange(1), default=100, show_default=True, help="Repetitions.")
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="load, engine: compile the step; load times its first frame too (default: as `respond` does here).",
)
@click.option("--callers", metavar="N,N,...", help="serve: callers at once, one run for each [default: 1,2,4].")
@click.option("--url", help="serve: a server that runs already, instead of --model.")
@click.option("--token", envvar="PERSONAPLEX_TOKEN", show_envvar=True, help="serve: the token of --url.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="serve: write the ticks by callers as a picture (SVG).",
)
@cascade_options
@click.option("--json", "as_json", is_flag=True, help="Only the JSON line.")
def command(
    name: str,
    model: str | None,
    frames: int,
    compiled: bool | None,
    callers: str | None,
    url: str | None,
    token: str | None,
    plot: Path | None,
    as_json: bool,
    **engines: str | None,
) -> None:
    """Measure this machine: a table, and as the last line of stdout one JSON object.

    The benchmarks: codec (Mimi frame by frame), load (a model from disk, its memory, its frames), engine (many
    conversations at once: step time by slots, and how long until one is ready), cascade (recogniser, language model and
    voice: each, first audio, all audio, with and without streaming by sentences, and how soon each can be stopped;
    --frames are questions), serve (callers at once over real sockets, in real time: each frame's way there and back,
    missed deadlines, underruns, first audio; --frames of 80 ms each).

    The object holds bench, machine, mlx, commit and rows, each row with p50_ms, p95_ms, p99_ms and max_ms.
    """
    from personaplex.bench.report import as_line, as_report, as_table

    note_blas()
    if compiled is not None and name == "codec":
        raise UsageError("--compile is for `bench load` and `bench engine`; `bench codec` has no such choice")
    for_serve = {"callers": callers, "url": url, "plot": plot}
    if name != "serve" and (given := next((option for option, value in for_serve.items() if value), None)):
        raise UsageError(f"--{given} is for `bench serve`")
    if plot is not None:
        check_writable(plot)
    module = importlib.import_module(f"personaplex.bench.{name}")
    if name == "cascade":
        rows = module.run(model, frames, compiled, parts_of(engines), pauses_of(engines))
    elif any(value is not None for value in engines.values()):
        named = next(name for name, value in engines.items() if value is not None)
        raise UsageError(f"--{named.replace('_', '-')} is for `bench cascade`")
    elif name == "serve":
        rows = module.run(model, frames, compiled, module.CALLERS if callers is None else counts(callers), url, token)
    else:
        rows = module.run(model, frames, compiled)
    report = as_report(name, rows)
    if plot is not None:
        with whole_file(plot) as path:
            path.write_text(module.picture(report["rows"]), encoding="utf-8")
    if not as_json:
        click.echo(as_table(report, module.__doc__ or ""))
        click.echo()
    click.echo(as_line(report))


def counts(text: str) -> list[int]:
    """Numbers of callers as they are typed. Raises UsageError."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise UsageError(f"--callers is {text!r}; expected numbers from 1 with commas between them, as in 1,2,4")
    return found
