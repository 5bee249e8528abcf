"""`personaplex quantisation-report`: what fewer bits cost, measured."""

from __future__ import annotations

import json
from pathlib import Path

import click

from personaplex.cli.options import json_option, note, note_blas, some_of
from personaplex.config import PARTS
from personaplex.errors import OutputError, UsageError
from personaplex.files import check_writable, whole_file

REPORT_FILES = ("report.html", "report.json", "quality.md")


@click.command("quantisation-report")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--reference", metavar="MODEL", required=True, help="The model that they were made of.")
@click.option(
    "--bits",
    callback=some_of("16", "8", "4", "mixed"),
    metavar="16,8,4,mixed",
    help="Also what `convert` would make of the reference, made in memory.",
)
@click.option("--group-size", type=click.Choice(["32", "64", "128"]), help="With --bits: weights that share a scale.")
@click.option(
    "--quantize",
    callback=some_of(*PARTS),
    metavar="PART,...",
    help="With --bits: the parts to quantise, as for `convert`.",
)
@click.option(
    "--kv-bits",
    callback=some_of("16", "8"),
    default="16",
    show_default=True,
    metavar="16,8",
    help="Bits of keys and values to measure each model with.",
)
@click.option(
    "--audio", multiple=True, metavar="FILE", help="What the user says; may be repeated (default: a short question)."
)
@click.option("--tail-seconds", type=click.FloatRange(0, 3600), help="Silence after each, to answer in (default 6).")
@click.option("--seed", type=int, help="Of the reference's answer (default 1).")
@click.option("--thresholds", type=click.Path(path_type=Path), metavar="FILE", help="Other limits: a TOML file.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help=f"Folder to write {', '.join(REPORT_FILES)} into."
)
@json_option
def command(
    models: tuple[str, ...],
    reference: str,
    bits: list[str] | None,
    group_size: str | None,
    quantize: list[str] | None,
    kv_bits: list[str],
    audio: tuple[str, ...],
    tail_seconds: float | None,
    seed: int | None,
    thresholds: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what fewer bits cost: MODELs, or conversions made in memory, beside their reference.

    The reference talks with each recording; then all read the same tokens and predict every next one. Prints a table:
    KL divergence and top-1 agreement by kind of token. The page has more: each codebook, rank of the reference's
    choice, over time, against bits, and the hidden state's drift layer by layer.
    """
    import dataclasses

    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import resolve
    from personaplex.checkpoint.recipe import quantization
    from personaplex.engine.sampling import check_seed
    from personaplex.quality.page import html
    from personaplex.quality.report import in_memory, measure, stored
    from personaplex.quality.thresholds import GATE, Thresholds

    if not models and not bits:
        raise UsageError("nothing to measure: name a MODEL that was converted, or --bits to make some in memory")
    if (group_size or quantize) and not bits:
        raise UsageError("--group-size and --quantize say how --bits are made; a MODEL is what it is")
    chosen = Thresholds.read(thresholds or GATE)
    if tail_seconds is not None:
        chosen = dataclasses.replace(chosen, tail_seconds=tail_seconds)
    if seed is not None:
        check_seed(seed)
        chosen = dataclasses.replace(chosen, seed=seed)
    if out is not None:
        _check_folder(out)
    note_blas(quiet=as_json)
    folder = ModelFolder(resolve(reference))
    candidates = [stored(model, folder) for model in models]
    for name in bits or []:
        how = quantization(name, folder.config.lm, int(group_size) if group_size else None, quantize)
        candidates.append(in_memory(name, how, folder))
    each = [dataclasses.replace(c, kv_bits=int(kv)) for c in candidates for kv in kv_bits]
    report = measure(
        reference, each, audio or [chosen.audio], chosen, scratch=out, say=lambda line: note(line, quiet=as_json)
    )
    for candidate in report.candidates:
        for reason in candidate.verdict.reasons:
            note(f"{candidate.label}: {candidate.verdict.kind}: {reason}", quiet=as_json)
    if out is not None:
        texts = (html(report), json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n", report.markdown())
        for name, text in zip(REPORT_FILES, texts, strict=True):
            with whole_file(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        note(f"wrote {out / REPORT_FILES[0]}", quiet=as_json)
    click.echo(json.dumps(report.to_json(), allow_nan=False) if as_json else report.markdown(), nl=as_json)


def _check_folder(out: Path) -> None:
    """Make the folder, or say now that nothing could be written there later."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}; choose another") from error
    for name in REPORT_FILES:
        check_writable(out / name)
