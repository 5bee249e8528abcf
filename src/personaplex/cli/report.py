"""`personaplex report`: conversations, evaluations and quantisation reports as one page; two results compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personaplex.cli.options import (
    DEFAULT_PERSONA,
    check_sampling,
    find_persona,
    kv_bits_option,
    note,
    note_blas,
    persona_options,
    role_prompt,
    sampling_changes,
    sampling_options,
)
from personaplex.errors import PersonaPlexError, UsageError
from personaplex.files import check_writable, whole_file
from personaplex.text import PROMPTS

if TYPE_CHECKING:
    from personaplex.evaluate.recordings import Recording
    from personaplex.report.comparison import Comparison
    from personaplex.report.sources import Sources

DEFAULT_OUTPUT = Path("report.html")
DEFAULT_SEED = 0
_OF_A_MODEL = (
    "persona", "voice", "system_prompt", "system_prompt_text", "max_steps", "seed", "greedy", "text_temp", "text_top_k",
    "audio_temp", "audio_top_k", "repetition_penalty",
)  # fmt: skip


@click.command("report")
@click.argument("sources", nargs=-1, metavar="[FILE|FOLDER]...", type=click.Path(path_type=Path))
@click.option(
    "--compare",
    nargs=2,
    metavar="A.json B.json",
    type=click.Path(path_type=Path),
    help="Compare two results, or two reports, row by row.",
)
@click.option("--model", metavar="nano|DIR|REPO", help="Run this model on --audio, and report on what it does.")
@click.option(
    "--audio",
    multiple=True,
    metavar="FILE|FOLDER",
    type=click.Path(path_type=Path),
    help="With --model: what the user says; may be repeated (default: a short question).",
)
@persona_options
@click.option("--voice", metavar="NAME|FILE", help="With --model: another voice than the persona's, as in `respond`.")
@click.option(
    "--system-prompt", metavar="NAME|FILE", help=f"With --model: another role: {', '.join(PROMPTS)}, or a file."
)
@click.option(
    "--system-prompt-text", metavar="TEXT", help="With --model: the agent's role in your words; empty for none."
)
@click.option("--max-steps", type=int, help="With --model: frames (80 ms) to go on after the user's end (default 200).")
@kv_bits_option
@sampling_options
@click.option(
    "--agent",
    type=click.Choice(["left", "right"]),
    help="The agent's channel, whatever a recording says (default: what it says, else left).",
)
@click.option(
    "--draw-seconds",
    type=click.FloatRange(1, 3600),
    default=600.0,
    show_default=True,
    help="Draw so much of each conversation; all of it is measured.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page (.html); the same as JSON lies beside it (default report.html; with --compare: none).",
)
@click.option("-q", "--quiet", is_flag=True, help="Only the table, and errors.")
def command(**options: Any) -> None:
    """Make one page of conversations and measurements, and JSON beside it.

    FILE: a recording of `talk --record` or `respond --record` (either of its two files), what `respond --json` printed,
    a session that a server exported (its .json or .wav), any stereo recording with the agent left, the JSON of an
    evaluation or of `quantisation-report`. Of a FOLDER, every such file. What cannot be read is named on the page, and
    the rest reported.

    With --model, recordings are answered as `respond` does, each with the same seed (default 0): the same command gives
    the same page again, but for step times. --compare says of each row whether it differs by more than noise.
    """
    _check(options)
    if options["compare"] is not None:
        first, second = options["compare"]
        _compare(first, second, options)
        return
    _report(options)


def _check(options: dict[str, Any]) -> None:
    """Everything that can be known to be wrong before minutes of work."""
    if options["compare"] is not None and (options["sources"] or options["model"] is not None):
        raise UsageError("--compare takes two results and nothing else; make a report first, and compare its JSON")
    if options["audio"] and options["model"] is None:
        raise UsageError("--audio is what a model is to hear: name it with --model")
    given = [name for name in _OF_A_MODEL if options[name] is not None and options[name] is not False]
    if options["model"] is None and given:
        raise UsageError(f"--{given[0].replace('_', '-')} is for --model, and none is named")
    if options["compare"] is None and not options["sources"] and options["model"] is None:
        raise UsageError("nothing to report on: name a recording, a result or a folder of them, or --model")
    if options["system_prompt"] is not None and options["system_prompt_text"] is not None:
        raise UsageError("give --system-prompt or --system-prompt-text, not both")
    check_sampling(options)
    output: Path | None = options["output"]
    if output is None and options["compare"] is None:
        output = options["output"] = DEFAULT_OUTPUT
    if output is None:
        return
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {output}: the page is an .html file, and its numbers a .json beside it")
    from personaplex.report.sources import is_written_here

    beside = output.with_suffix(".json")
    sources = {path.resolve() for path in (*options["sources"], *(options["compare"] or ()))}
    if beside.resolve() in sources or (beside.is_file() and not is_written_here(beside)):
        raise UsageError(
            f"the numbers of {output} go into {beside}, which is there and is no report; choose another name"
        )
    check_writable(output)
    check_writable(beside)


def _report(options: dict[str, Any]) -> None:
    from personaplex.evaluate.row import as_markdown
    from personaplex.report.page import html
    from personaplex.report.report import Report
    from personaplex.report.sources import Sources

    quiet, output = options["quiet"], options["output"]
    sources = Sources()
    if options["sources"]:
        sources.read(options["sources"], options["agent"], needed=options["model"] is None)
    about = _converse(sources, options) if options["model"] is not None else {}
    report = Report.of(sources, about)
    for failure in sources.failures:
        note(f"left out: {failure.reason}", quiet=quiet)
    for shown in report.shown:
        for doubt in shown.recorded.doubts:
            note(f"{shown.recorded.name}: {doubt}", quiet=quiet)
    result = report.result()
    with whole_file(output) as temporary:
        temporary.write_text(html(report, options["draw_seconds"]), encoding="utf-8", errors="replace")
    result.save(output.with_suffix(".json"))
    if result.rows:
        click.echo(as_markdown(result.rows))
    note(f"wrote {output} and {output.with_suffix('.json').name}", quiet=quiet)


def _converse(sources: Sources, options: dict[str, Any]) -> dict[str, Any]:
    """Have the model answer every recording; what was asked of it, and where. Raises if nothing came of anything."""
    from personaplex.bench.machine import describe_machine, mlx_version
    from personaplex.cli.respond import open_reply
    from personaplex.evaluate.result import Failure
    from personaplex.model import PersonaPlex
    from personaplex.report.run import as_recorded
    from personaplex.report.sources import printable

    quiet = options["quiet"]
    note_blas(quiet=quiet)
    seed = options["seed"] if options["seed"] is not None else DEFAULT_SEED
    asked = {"seed": seed, "verbose": False, "max_seconds": None, "stop_on_silence": True, "chunk_frames": 25}
    options = {**options, **asked, "prompt": role_prompt(options), "role": find_persona(options)}
    asked_about = _recordings(options["audio"])
    note(f"loading {options['model']}", quiet=quiet)
    model = PersonaPlex.from_pretrained(options["model"], kv_bits=int(options["kv_bits"]))
    persona = options["persona"] or DEFAULT_PERSONA
    about: dict[str, Any] = {"model": options["model"], "persona": persona, "seed": seed, **sampling_changes(options)}
    first: PersonaPlexError | None = None
    for recording in asked_about:
        try:
            user = recording.read()
            reply = open_reply(model, user, dict(options)).reply
            sources.add(as_recorded(recording.name, user, reply, {"model": options["model"], "persona": persona}))
            note(f"answered {recording.name}: {reply.text or '(nothing)'}", quiet=quiet)
        except PersonaPlexError as error:
            first = first or error
            sources.failures.append(Failure(printable(recording.name), printable(str(error))))
    if first is not None and not len(sources):
        raise first
    return {**about, "machine": describe_machine(), "mlx": mlx_version()}


def _recordings(paths: tuple[Path, ...]) -> list[Recording]:
    """Recordings for the model to hear: those named, those in folders, or the short question."""
    from personaplex.evaluate.recordings import find_recordings
    from personaplex.quality.thresholds import Thresholds

    return find_recordings(paths or (Thresholds.read().audio,))


def _compare(first: Path, second: Path, options: dict[str, Any]) -> None:
    from personaplex.report.comparison import compare
    from personaplex.report.comparison_page import markdown
    from personaplex.report.sources import load_result

    found = compare(load_result(first), load_result(second))
    click.echo(markdown(found))
    if options["output"] is not None:
        _write_comparison(found, first, second, options["output"], quiet=options["quiet"])


def _write_comparison(found: Comparison, first: Path, second: Path, output: Path, *, quiet: bool) -> None:
    from personaplex.report.comparison_page import html

    with whole_file(output) as temporary:
        temporary.write_text(html(found, first.name, second.name), encoding="utf-8", errors="replace")
    with whole_file(output.with_suffix(".json")) as temporary:
        text = json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    note(f"wrote {output} and {output.with_suffix('.json').name}", quiet=quiet)
