"""`personaplex info`: what a model is, and what it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from personaplex.cli.options import json_option

if TYPE_CHECKING:
    from personaplex.summary import Summary

GIB = 2**30


@click.command("info")
@click.argument("model", metavar="nano|DIR|REPO")
@click.option("--sessions", type=click.IntRange(1, 64), default=4, show_default=True, help="Plan memory for 1 to N.")
@click.option("--verify", is_flag=True, help="Read every file whose SHA-256 is known, and compare.")
@json_option
def command(model: str, sessions: int, verify: bool, as_json: bool) -> None:
    """Describe a model: architecture, files, bits per part, parameters, licence and memory; nothing is downloaded.

    The memory plan is for this machine: weights, codec, and for each conversation its window; while one is being
    opened there is one more.
    """
    from personaplex.summary import summarise

    summary = summarise(model, sessions, verify=verify)
    if as_json:
        click.echo(json.dumps(summary.as_json()))
        return
    for name, value in _lines(summary):
        click.echo(f"{name:14}{value}".rstrip())


def _lines(summary: Summary) -> Iterator[tuple[str, str]]:
    from personaplex.checkpoint.repository import licence_page

    gated = f"; gated, accepted at {licence_page(summary.model)}" if summary.gated else ""
    yield "model", summary.model
    yield "folder", summary.folder or "not on this machine; the first command that uses it downloads it"
    yield "licence", f"{summary.licence.name} {summary.licence.url}".rstrip() + gated
    if summary.made_of:
        yield "made of", summary.made_of
    yield from _architecture(summary.architecture)
    for name, count in summary.parameters.items():
        yield "parameters" if name == next(iter(summary.parameters)) else "", f"{count:>14,} {_WHICH[name]}"
    for part in summary.parts:
        yield "bits" if part is summary.parts[0] else "", f"{part.bits:>14g} {part.part} ({part.parameters:,} values)"
    for name, n_bytes in summary.files.items():
        yield "files" if name == next(iter(summary.files)) else "", f"{n_bytes:>14,} {name}"
    if summary.verified is not None:
        yield "verified", ", ".join(summary.verified) or "nothing: no SHA-256 is known of its files"
    for row in summary.memory:
        fits = {True: "", False: "  too much", None: ""}[row.fits]
        what = f"{row.n_bytes / GIB:>14.2f} GiB for {row.sessions} session{'s' if row.sessions > 1 else ''}{fits}"
        yield "memory" if row.sessions == 1 else "", what
    if summary.available is not None and summary.most_sessions is not None:
        has = f"{summary.available / GIB:>14.2f} GiB are available as {summary.dtype}"
        yield "", f"{has}: room for {summary.most_sessions} at once"


_WHICH = {
    "codec": "of the codec, as stored",
    "stored": "of the language model, as stored",
    "live": "of them are read and held to talk",
}


def _architecture(about: dict[str, object]) -> Iterator[tuple[str, str]]:
    yield "kind", {"personaplex": "PersonaPlex", "moshi": "Moshi", "mimi": "Mimi, a codec alone"}[str(about["kind"])]
    for name, value in about.items():
        if isinstance(value, dict):
            yield name, ", ".join(f"{key.replace('_', ' ')} {size}" for key, size in value.items())
        elif name != "kind":
            yield name, ", ".join(value) if isinstance(value, list) and value else "none"
