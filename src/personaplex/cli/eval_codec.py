"""`personaplex eval codec`: what a model's codec loses."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from personaplex.cli.evaluation import evaluation_options, show
from personaplex.cli.options import model_option, note, note_blas
from personaplex.errors import UsageError
from personaplex.files import check_writable

DEFAULT_SENTENCES = 40


@click.command("codec")
@click.argument("recordings", nargs=-1, metavar="[RECORDING|FOLDER]...", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--sentences",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Synthesise N sentences instead of recordings (default {DEFAULT_SENTENCES}).",
)
@click.option(
    "--codebooks", type=int, metavar="N", help="How many codebooks to use (default: as many as the model does)."
)
@click.option("--no-opus", is_flag=True, help="Without Opus beside it.")
@evaluation_options
def command(
    recordings: tuple[Path, ...],
    model: str,
    sentences: int | None,
    codebooks: int | None,
    no_opus: bool,
    seed: int,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Send recordings through the codec and back, and measure what was lost.

    SNR, SI-SDR, mel distance, STOI, ESTOI, PESQ (where `pesq` is installed), the codec's delay and bit rate, and how
    much of each codebook is used; the same for Opus; and controls that must score worse: half the codebooks, and codes
    in another order. Recordings of any format and rate, channels averaged; without any, sentences are synthesised.
    """
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import CODEC_FILES, resolve
    from personaplex.engine.sampling import check_seed
    from personaplex.evaluate.codec.run import evaluate_codec
    from personaplex.evaluate.recordings import find_recordings
    from personaplex.evaluate.sentences import synthesised

    check_seed(seed)
    if recordings and sentences is not None:
        raise UsageError("give recordings or --sentences, not both")
    if json_file is not None:
        check_writable(json_file)
    found = find_recordings(recordings) if recordings else synthesised(sentences or DEFAULT_SENTENCES, seed)
    note_blas(quiet=quiet)
    folder = ModelFolder(resolve(model, CODEC_FILES))
    mimi = folder.load_mimi(codebooks)
    about = {"model": model, "codec": folder.codec_fingerprint}
    say = partial(note, quiet=quiet)
    result = evaluate_codec(mimi, found, n_codebooks=codebooks, with_opus=not no_opus, seed=seed, about=about, say=say)
    show(result, json_file, quiet=quiet)
