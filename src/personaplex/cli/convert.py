"""`personaplex convert`: a model in fewer bits, in a folder of its own, and perhaps on the Hub."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

import personaplex
from personaplex.cli.options import json_option, note, some_of
from personaplex.config import PARTS
from personaplex.errors import OutputError, UsageError

NOT_MEASURED = "its quality was not measured"

if TYPE_CHECKING:
    from personaplex.checkpoint.card import Quality


@click.command("convert")
@click.argument("source", metavar="nano|DIR|REPO")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make; it must not exist.")
@click.option(
    "--bits",
    type=click.Choice(["16", "8", "4", "mixed"]),
    default="8",
    show_default=True,
    help="16: as it came. 8 or 4: the same for all parts. mixed: the recipe of docs/weights.md.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    help="Values that share a scale (default: 64, and the recipe's own for mixed).",
)
@click.option(
    "--quantize",
    "parts",
    callback=some_of(*PARTS),
    metavar="PART,...",
    help="What is quantised, of temporal, depformer, heads, embeddings (default: the first two; all for mixed).",
)
@click.option("--keep-user-steps", is_flag=True, help="Keep the depformer steps that guess the user's codes (8 to 15).")
@click.option("--trim-codec", is_flag=True, help="Leave out the codebooks of Mimi that are never used (24 of 32).")
@click.option(
    "--measure/--no-measure",
    "measured",
    default=True,
    show_default=True,
    help="Compare it with its source on a short recording, for the model card.",
)
@click.option("--upload", "repo", metavar="REPO", help="Then upload the folder to owner/name on the Hub.")
@click.option("--force", is_flag=True, help="Upload even what is worse than the report's thresholds, or not measured.")
@json_option
def command(
    source: str,
    out: Path,
    bits: str,
    group_size: str | None,
    parts: list[str] | None,
    keep_user_steps: bool,
    trim_codec: bool,
    measured: bool,
    repo: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert a model: quantise it, and leave out what talking does not need.

    It goes tensor by tensor and needs less than 3 GB of memory for the 7B. If it is interrupted, the same command goes
    on where it was.
    """
    from personaplex.checkpoint.card import Quality
    from personaplex.checkpoint.convert import check_absent, convert, result_config
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import resolve
    from personaplex.checkpoint.recipe import quantization
    from personaplex.checkpoint.sources import BUNDLED
    from personaplex.checkpoint.upload import check_permission, upload
    from personaplex.config import Provenance

    if bits == "16" and (group_size or parts):
        raise UsageError("--group-size and --quantize are for fewer bits than 16")
    if force and not repo:
        raise UsageError("--force is for --upload")
    check_absent(out)
    if repo:
        check_permission(repo)
    folder = ModelFolder(resolve(source))
    before, here = folder.config.provenance, source != BUNDLED and Path(source).expanduser().is_dir()
    how = quantization(bits, folder.config.lm, int(group_size) if group_size else None, parts)
    config = result_config(folder.config, how, keep_user_steps=keep_user_steps, trim_codec=trim_codec)
    about = Provenance(
        source=folder.path.resolve().name if here else source,
        source_fingerprint=folder.fingerprint,
        base_model=before.base_model if before else "" if here else source,
        converter=f"personaplex {personaplex.__version__}",
    )
    began = time.perf_counter()
    try:
        quality = convert(
            folder,
            out,
            config,
            about,
            on_progress=_progress(),
            measure=lambda made: _measure(source, made, bits) if measured else Quality(refusals=(NOT_MEASURED,)),
        )
    except KeyboardInterrupt:
        note(f"{out} is unfinished; the same command goes on where it was")
        raise
    n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    seconds = round(time.perf_counter() - began, 1)
    note(f"wrote {out}: {n_bytes / 1e9:.2f} GB in {seconds} s")
    if measured and not repo:
        for reason in quality.refusals:
            note(f"not fit to be published: {reason}")
    if repo:
        if quality.refusals and not force:
            raise OutputError(
                f"{out} is whole, and was not uploaded: {'; '.join(quality.refusals)}; "
                f"`hf upload {repo} {out}` uploads it all the same"
            )
        try:
            note(f"uploaded to {upload(out, repo)}")
        except OutputError:
            note(f"{out} is whole; `hf upload {repo} {out}` tries again")
            raise
    if as_json:
        click.echo(json.dumps({"output": str(out), "bytes": n_bytes, "seconds": seconds, "refusals": quality.refusals}))


def _measure(source: str, made: Path, bits: str) -> Quality:
    """What a short report finds in the converted model of a folder, beside its source."""
    from personaplex.quality.gate import examine
    from personaplex.quality.report import silent

    return examine(source, made, bits, say=note if sys.stderr.isatty() else silent)


def _progress() -> Callable[[int, int], None]:
    """A line on a terminal that counts, and nothing elsewhere."""
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        if terminal:
            end = "\n" if done == total else ""
            click.echo(f"\r{done / 1e9:7.2f} of {total / 1e9:.2f} GB of weights{end}", err=True, nl=False)

    return show
