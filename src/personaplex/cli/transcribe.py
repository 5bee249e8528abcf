"""`personaplex transcribe`: what is said in recordings, as text, JSON or subtitles."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personaplex.audio import stream_audio
from personaplex.cli.options import note
from personaplex.errors import UsageError
from personaplex.files import check_writable, whole_file
from personaplex.units import SAMPLE_RATE

if TYPE_CHECKING:
    from personaplex.cascade.engine import Recogniser
    from personaplex.cascade.transcription import Counted, Utterance


@click.command("transcribe")
@click.argument("files", metavar="FILE...", nargs=-1)
@click.option(
    "--engine",
    metavar="NAME[:MODEL]",
    envvar="PERSONAPLEX_RECOGNISER",
    show_envvar=True,
    help="The recogniser (default: the best that is on this machine; docs/cascade.md).",
)
@click.option("--language", metavar="CODE", help="What is spoken, such as de (default: the engine's guess).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "srt", "vtt"]),
    help="A line for each utterance, an object with the times of words for each recording, or subtitles "
    "(default: by --output's suffix, or text).",
)
@click.option(
    "-o", "--output", metavar="FILE", help="Write here, whole or not at all (default, and -: standard output)."
)
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")
def command(**options: Any) -> None:
    """Write down what is said in recordings of any format and length; - is standard input.

    A recording is cut where nobody speaks, and each utterance is given out as soon as it is recognised. Recordings of
    hours take no more memory than short ones.
    """
    from personaplex.cascade.registry import default_recogniser, open_recogniser

    if options["output"] == "-":
        options["output"] = None
    if options["engine"] is None:
        options["engine"] = default_recogniser()
    form = _check(options)
    recogniser = open_recogniser(options["engine"])
    try:
        recogniser.listen(options["language"]).close()
        written = _written(options, form, recogniser)
        if options["output"] is None:
            for text in written:
                click.echo(text, nl=False)
        else:
            _write(Path(options["output"]), written)
            note(f"wrote {options['output']}", quiet=options["quiet"])
    finally:
        recogniser.close()


def _check(options: dict[str, Any]) -> str:
    """Everything that can be known to be wrong before a model is loaded; returns the format."""
    from personaplex.cascade.registry import find_engine, parse_choice

    files, output = options["files"], options["output"]
    if not files:
        raise UsageError("name a recording to transcribe, or - for standard input")
    if files.count("-") > 1:
        raise UsageError("standard input (-) can be read once only")
    suffix = "" if output is None else Path(output).suffix.lower().removeprefix(".")
    form = options["form"] or (suffix if suffix in ("json", "srt", "vtt") else "text")
    if form in ("srt", "vtt") and len(files) > 1:
        raise UsageError(f"subtitles ({form}) are of one recording; name one, or choose --format text or json")
    find_engine("recogniser", parse_choice(options["engine"]).name)
    if output is not None:
        if any(name != "-" and Path(output).resolve() == Path(name).resolve() for name in files):
            raise UsageError("--output is a recording that is to be read; choose another name")
        check_writable(Path(output))
    for name in files:
        if name != "-":
            with closing(stream_audio(name)) as pieces:
                next(pieces)
    return form


def _written(options: dict[str, Any], form: str, recogniser: Recogniser) -> Iterator[str]:
    """What is written, piece by piece."""
    from personaplex.cascade.subtitles import VTT_HEAD, cues, srt, vtt
    from personaplex.cascade.transcription import Counted, transcribe

    if form == "vtt":
        yield VTT_HEAD
    n_cues = 0
    for name in options["files"]:
        heard = Counted(stream_audio(name))
        utterances = _watched(transcribe(heard, recogniser, options["language"]), name, heard, options)
        if form == "json":
            yield _as_json(name, options["engine"], list(utterances), heard.n_samples / SAMPLE_RATE) + "\n"
            continue
        if form == "text" and len(options["files"]) > 1:
            yield f"==> {name} <==\n"
        for said in utterances:
            if form == "text":
                yield said.text + "\n"
            else:
                for cue in cues(said):
                    n_cues += 1
                    yield srt(n_cues, cue) if form == "srt" else vtt(cue)


def _watched(
    utterances: Iterator[Utterance], name: str, heard: Counted, options: dict[str, Any]
) -> Iterator[Utterance]:
    """The same; a person at a terminal sees how far it is, and everybody when there was nothing to write."""
    quiet, is_shown = options["quiet"], options["output"] is None and sys.stdout.isatty()
    shows = sys.stderr.isatty() and not is_shown and not quiet
    n = 0
    for said in utterances:
        n += 1
        if shows:
            click.echo(f"\r{name}: {said.end / 60:.1f} min", nl=False, err=True)
        yield said
    if shows and n:
        click.echo(err=True)
    if not n:
        seconds = heard.n_samples / SAMPLE_RATE
        note(f"note: no words are heard in {name} ({seconds:.1f} s)", quiet=quiet)


def _as_json(name: str, engine: str, said: list[Utterance], seconds: float) -> str:
    report = {
        "file": name,
        "engine": engine,
        "seconds": round(seconds, 3),
        "text": " ".join(utterance.text for utterance in said),
        "utterances": [
            {
                "start": round(utterance.start, 3),
                "end": round(utterance.end, 3),
                "language": utterance.language,
                "text": utterance.text,
                "words": [
                    {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
                    for word in utterance.words
                ],
            }
            for utterance in said
        ],
    }
    return json.dumps(report, ensure_ascii=False)


def _write(path: Path, written: Iterator[str]) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for text in written:
            file.write(text)
