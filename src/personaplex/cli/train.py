"""`personaplex train`: the small model from nothing, step by step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personaplex.accelerator import FRAME_OPS

if TYPE_CHECKING:
    from personaplex.train.bank import Bank
    from personaplex.train.run import Run
    from personaplex.train.team import Team

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def command() -> None:
    """Train a codec and a language model on synthesised speech (see docs/training.md).

    The steps, in order: clips, corpus, codec, bank, lm, own, lm. Each can be interrupted and run again: it goes on
    where it was.
    """
    # In training TF32 is exact enough, and several times faster; MLX reads this when it is loaded.
    os.environ["MLX_ENABLE_TF32"] = "1"
    # A step of training has thousands of operations: no graph for every few of them, unless somebody asked for that.
    if os.environ.get("MLX_MAX_OPS_PER_BUFFER") == FRAME_OPS:
        del os.environ["MLX_MAX_OPS_PER_BUFFER"]


def _config(path: Path, kind: type[Any]) -> Any:
    """A TOML file as the dataclass `kind`. Raises ConfigError naming the field."""
    import tomllib

    from personaplex.config import from_json
    from personaplex.errors import ConfigError

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    return from_json(kind, data, str(path))


def _processes(wish: int | None, among: int = 1) -> int:
    return wish if wish is not None else max(1, ((os.cpu_count() or 2) - 2) // among)


def _run(team: Team, folder: Path, config: Any) -> Run:
    """The run in a folder; one process of a team keeps it, the others follow."""
    from dataclasses import asdict

    from personaplex.train.run import Follower, Run

    return Run(folder, asdict(config), click.echo) if team.rank == 0 else Follower(folder, asdict(config))


@command.command()
@click.option("--out", type=_FOLDER, required=True, help="Folder for the clips (3 MB per minute of sound).")
@click.option("--config", type=_FILE, help="TOML with the numbers of clips; see runs/nano-clips.toml.")
@click.option("--processes", type=click.IntRange(1), help="How many synthesise at a time; default: all cores but two.")
def clips(out: Path, config: Path | None, processes: int | None) -> None:
    """Synthesise every line that agents and users may say."""
    from personaplex.train.clips import ClipsConfig, make_clips

    wanted = _config(config, ClipsConfig) if config else ClipsConfig()
    make_clips(out, wanted, _processes(processes), click.echo)


@command.command()
@click.option("--config", type=_FILE, required=True, help="TOML; see runs/nano-codec-1.toml.")
@click.option("--out", type=_FOLDER, required=True, help="Folder for the corpus; it must not exist.")
@click.option("--processes", type=click.IntRange(1), help="How many synthesise at a time; default: all cores but two.")
def corpus(config: Path, out: Path, processes: int | None) -> None:
    """Synthesise the speech that the codec learns from."""
    import numpy as np

    from personaplex.dialogue import agent_plan, user_plan
    from personaplex.train.codec import read_codec_training
    from personaplex.train.corpus import make_corpus, plan

    wanted = read_codec_training(config).corpus
    rng = np.random.default_rng(wanted.seed)
    agents, users = ([line.text for line in lines] for lines in (agent_plan(rng), user_plan(rng, 20_000)))
    make_corpus(out, plan(wanted, agents, users), _processes(processes), click.echo)


@command.command()
@click.option("--config", type=_FILE, required=True, help="TOML; see runs/nano-codec-1.toml.")
@click.option("--corpus", type=_FOLDER, required=True, help="What `train corpus` made.")
@click.option("--out", type=_FOLDER, required=True, help="Folder of the run; one that holds a run goes on with it.")
@click.option("--start-from", type=_FILE, help="Begin with the weights of this mimi.safetensors.")
@click.option("--minutes", type=float, help="Stop after so long; run again to go on.")
@click.option(
    "--processes", type=click.IntRange(0), help="How many cut batches; default: all cores but two, at most 4."
)
def codec(
    config: Path, corpus: Path, out: Path, start_from: Path | None, minutes: float | None, processes: int | None
) -> None:
    """Train the codec."""
    from personaplex.train.codec import CropsOf, read_codec_training, train_codec
    from personaplex.train.corpus import Corpus
    from personaplex.train.feed import feed
    from personaplex.train.team import Team

    wanted = read_codec_training(config)
    team, speech = Team.join(), Corpus(corpus)
    crops = team.deal(CropsOf(corpus, wanted, team.share(wanted.batch)))
    run = _run(team, out, wanted)
    restored = run.restore()
    cutters = processes if processes is not None else min(4, _processes(None, team.size))
    with feed(crops, cutters, restored[0] if restored else 0) as batches:
        train_codec(run, wanted, speech, minutes and minutes * 60, batches, start_from, team)


@command.command()
@click.option("--clips", type=_FOLDER, required=True, multiple=True, help="What `train clips` made; may be repeated.")
@click.option(
    "--takes", type=click.IntRange(1), default=1, show_default=True, help="How often each user's clip is heard."
)
@click.option("--codec", type=_FOLDER, required=True, help="The run that trained the codec, or a model's folder.")
@click.option("--out", type=_FILE, required=True, help="The bank, an .npz file.")
@click.option("--int8", is_flag=True, help="Hear as the codec will when it is stored as int8.")
@click.option(
    "--part",
    type=(click.IntRange(0), click.IntRange(1)),
    default=(0, 1),
    metavar="I N",
    help="Only part I (from 0) of N, for several processes on one device; `train lm` takes all parts as banks.",
)
def bank(clips: tuple[Path, ...], takes: int, codec: Path, out: Path, int8: bool, part: tuple[int, int]) -> None:
    """Run every clip through the codec."""
    import os
    from itertools import chain

    # Clips and takes of all lengths are more shapes than MLX on CUDA keeps plans for; it gives up at too many anew.
    os.environ.setdefault("MLX_CUDA_CONV_CACHE_SIZE", "8192")

    from personaplex.files import check_writable
    from personaplex.train.bank import encode_bank, load_codec
    from personaplex.train.clips import read_clips
    from personaplex.train.team import Team

    team = Team.join()
    if team.rank == 0:
        check_writable(out)
    number, parts = part[0] * team.size + team.rank, part[1] * team.size
    if number >= parts:
        raise click.UsageError(f"part {part[0]} of {part[1]}: parts are numbered from 0 to {part[1] - 1}")
    every = chain.from_iterable(read_clips(folder, number, parts) for folder in clips)
    made = encode_bank(load_codec(codec, int8=int8), every, click.echo, takes, seed=number)
    _save(team, made, out)


def _save(team: Team, made: Bank, out: Path) -> None:
    """Write what a team has made as one bank; its first process joins them."""
    from personaplex.train.bank import Bank, join

    if team.size > 1:
        parts = [out.with_suffix(f".{rank}.npz") for rank in range(team.size)]
        made.save(parts[team.rank])
        team.any(False)  # until everybody has saved
        if team.rank:
            return
        made = join([Bank.read(part) for part in parts])
        for part in parts:
            part.unlink()
    made.save(out)


@command.command()
@click.option("--bank", type=_FILE, required=True, help="What `train bank` made: the lines, their times, the voices.")
@click.option(
    "--model", type=_FOLDER, required=True, help="The run that trained a language model, or a model's folder."
)
@click.option("--tokenizer", type=_FILE, required=True, help="The SentencePiece model.")
@click.option("--out", type=_FILE, required=True, help="The clips, an .npz file as `train bank` writes.")
@click.option("--lines", type=click.IntRange(0), help="New lines of each voice, beside the bank's; default: 4000.")
@click.option("--batch", type=click.IntRange(1), help="Lines that are said at a time; default: 256.")
def own(bank: Path, model: Path, tokenizer: Path, out: Path, lines: int | None, batch: int | None) -> None:
    """Let a trained model say agents' lines, to learn text from its own voice."""
    import mlx.core as mx

    from personaplex.files import check_writable
    from personaplex.text import Tokenizer
    from personaplex.train.bank import Bank
    from personaplex.train.own_voice import OwnLines, OwnVoice, load_speaker, say_lines, scripts
    from personaplex.train.team import Team

    team = Team.join()
    if team.rank == 0:
        check_writable(out)
    wishes = {name: value for name, value in (("lines", lines), ("batch", batch)) if value is not None}
    config = OwnLines(compile=mx.default_device().type == mx.DeviceType.gpu, **wishes)
    clips, lm = Bank.read(bank), load_speaker(model)
    voice = OwnVoice(lm, Tokenizer(tokenizer, lm.config.text_card), clips, config)
    _save(team, say_lines(voice, scripts(clips, config), click.echo, team.rank, team.size), out)


@command.command()
@click.option("--config", type=_FILE, required=True, help="TOML; see runs/nano-lm.toml.")
@click.option(
    "--bank", type=_FILE, required=True, multiple=True, help="What `train bank` and `train own` made; may be repeated."
)
@click.option("--tokenizer", type=_FILE, required=True, help="The SentencePiece model.")
@click.option("--out", type=_FOLDER, required=True, help="Folder of the run; one that holds a run goes on with it.")
@click.option("--start-from", type=_FILE, help="Begin with the weights of this model.safetensors.")
@click.option("--minutes", type=float, help="Stop after so long; run again to go on.")
@click.option("--processes", type=click.IntRange(0), help="How many compose batches; default: all cores but two.")
def lm(
    config: Path,
    bank: tuple[Path, ...],
    tokenizer: Path,
    out: Path,
    start_from: Path | None,
    minutes: float | None,
    processes: int | None,
) -> None:
    """Train the language model on dialogues composed from the banks."""
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    import mlx.core as mx

    from personaplex.errors import TrainingError
    from personaplex.text import Tokenizer
    from personaplex.train.bank import Bank, join
    from personaplex.train.compose import Batch, Composer, ComposerFiles
    from personaplex.train.feed import feed
    from personaplex.train.lm import LMTraining, train_lm
    from personaplex.train.team import Team

    wanted, team = _config(config, LMTraining), Team.join()
    # Read once here: what is wrong with a file is said here, not by the processes that compose.
    clips = join([Bank.read(path) for path in bank])
    if (most := int(clips.codes.max())) >= wanted.lm.card:
        raise TrainingError(f"{bank[0]} holds the code {most}, but lm.card is {wanted.lm.card}: another codec made it")
    composer = Composer(clips, Tokenizer(tokenizer, wanted.lm.text_card), wanted.composition, wanted.seed)
    run, size = _run(team, out, wanted), team.share(wanted.batch)
    restored = run.restore()
    with ExitStack() as stack:
        whole = bank[0]
        if len(bank) > 1:  # one file that all processes map, and none has to join
            whole = Path(stack.enter_context(TemporaryDirectory(prefix=".bank.", dir=out))) / "bank.npz"
            clips.save(whole)
        files = ComposerFiles(whole, tokenizer, wanted.lm.text_card, wanted.composition, wanted.seed, size)
        made = stack.enter_context(
            feed(team.deal(files), _processes(processes, team.size), restored[0] if restored else 0)
        )
        train_lm(
            run,
            wanted,
            lambda step: Batch(*map(mx.array, made(step))),
            composer.first_pieces,
            start_from=start_from,
            stop_after_seconds=minutes and minutes * 60,
            team=team,
        )
