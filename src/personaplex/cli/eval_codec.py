"""`personaplex eval codec`: what a model's codec loses."""

from __future__ import annotations

from pathlib import Path

import click

from personaplex.cli.evaluation import evaluation_options, show
from personaplex.cli.options import model_option, note, note_blas
from personaplex.files import check_writable


@click.command("codec")
@click.argument("recordings", nargs=-1, required=True, metavar="RECORDING|FOLDER...", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--codebooks", type=int, metavar="N", help="How many codebooks to use (default: as many as the model does)."
)
@click.option("--no-opus", is_flag=True, help="Without Opus beside it.")
@evaluation_options
def command(
    recordings: tuple[Path, ...], model: str, codebooks: int | None, no_opus: bool, seed: int, json_file: Path | None
) -> None:
    """Send recordings through the codec and back, and measure what was lost.

    SNR, SI-SDR, mel distance, STOI, ESTOI, PESQ (where `pesq` is installed), the codec's delay and bit rate, and how
    much of each codebook is used; the same for Opus; and controls that must score worse: half the codebooks, and codes
    in another order. Recordings of any format and rate; channels are averaged.
    """
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import CODEC_FILES, resolve
    from personaplex.engine.sampling import check_seed
    from personaplex.evaluate.codec.run import evaluate_codec
    from personaplex.evaluate.recordings import find_recordings

    check_seed(seed)
    if json_file is not None:
        check_writable(json_file)
    paths = find_recordings(recordings)
    note_blas()
    folder = ModelFolder(resolve(model, CODEC_FILES))
    mimi = folder.load_mimi(codebooks)
    about = {"model": model, "codec": folder.codec_fingerprint}
    show(
        evaluate_codec(mimi, paths, n_codebooks=codebooks, with_opus=not no_opus, seed=seed, about=about, say=note),
        json_file,
    )
