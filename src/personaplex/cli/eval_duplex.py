"""`personaplex eval duplex`: when a model speaks and when it listens, by Full-Duplex-Bench's definitions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from personaplex.cli.evaluation import evaluation_options, recogniser_option, show, slots_option
from personaplex.cli.options import TALKS_AS_ITSELF, find_voice, note, note_blas, role_prompt, some_of
from personaplex.errors import UsageError
from personaplex.files import check_writable

if TYPE_CHECKING:
    from personaplex.conversation import Settings
    from personaplex.evaluate.duplex.clips import Clip, Task
    from personaplex.evaluate.duplex.conversations import Talked
    from personaplex.evaluate.hearing import EngineEar
    from personaplex.evaluate.result import Result
    from personaplex.runtime.engine import Engine

CLIPS = 10
"""Clips of each kind in a set that is made when nobody says how many."""

_TASKS = {
    "pause": "pause",
    "backchannel": "backchannel",
    "turn": "turn",
    "interruption": "interruption",
    "user-interruption": "user interruption",
    "user-backchannel": "user backchannel",
    "talking-to-other": "talking to other",
    "background-speech": "background speech",
}


@click.command("duplex")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="nano|DIR|REPO",
    help="Let this model talk through the clips first (default: score the output.wav that are there).",
)
@click.option("--synthetic", type=click.IntRange(1), metavar="N", help="Make the clips: N of each of eight kinds.")
@click.option(
    "--make",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help=f"Make them there and keep them ({CLIPS} of each kind unless --synthetic says how many).",
)
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where output.wav and output.json are, or go with --model (default: beside input.wav).",
)
@click.option("--overwrite", is_flag=True, help="With --model: replace the output.wav that are there.")
@click.option("--only", metavar="TASK,...", callback=some_of(*_TASKS), help=f"Some of {', '.join(_TASKS)}.")
@click.option("--task", type=click.Choice(list(_TASKS)), help="What the clips are, where folders' names do not tell.")
@click.option(
    "--human",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="People's backchannels, the benchmark's icc_gt_distribution.json (default: one beside the clips).",
)
@recogniser_option("What hears the words where there is no output.json (default: the best that is on this machine).")
@click.option("--keep-words", is_flag=True, help="Write them as output.json; with --model they are kept anyway.")
@click.option(
    "--agent-channel",
    type=click.Choice(["auto", "left", "right", "both"]),
    default="auto",
    show_default=True,
    help="Which channel of a stereo file is the agent's; auto: the one that is not input.wav.",
)
@click.option("--voice", metavar="NAME|FILE", help="The model's voice (default: its own).")
@click.option("--system-prompt", metavar="NAME|FILE", help="Its role (default: PersonaPlex's for each task).")
@click.option("--system-prompt-text", metavar="TEXT", help="Its role in your words; empty for none.")
@click.option("--greedy", is_flag=True, help="Always the likeliest token.")
@slots_option
@evaluation_options
def command(**options: Any) -> None:
    """Full-Duplex-Bench: pauses, backchannels, turns and interruptions (v1.0), overlaps (v1.5), without a judge.

    FOLDER is the benchmark as it was downloaded, or a part of it: SUBSET/CLIP/input.wav with its annotation. Without
    --model the output.wav beside each are scored; with it the model hears each input.wav first, several at once and as
    fast as it can. --synthetic makes clips with a synthesiser instead, so that this runs anywhere.

    A table goes to stdout, with what the benchmark has beyond it in words; --json keeps every clip's part in it.
    """
    _check(options)
    with ExitStack() as stack:
        folder = _folder(stack, options)
        if folder is not None:
            _evaluate(stack, folder, options)


def _check(options: dict[str, Any]) -> None:
    """Everything that can be known to be wrong before anything is made, loaded or heard."""
    from personaplex.engine.sampling import check_seed

    check_seed(options["seed"])
    makes = options["synthetic"] is not None or options["make"] is not None
    if makes and options["folder"] is not None:
        raise UsageError("clips are made (--synthetic, --make) or lie in FOLDER, not both")
    if not makes and options["folder"] is None:
        raise UsageError("name the folder of the clips, or have them made: --synthetic 10 --model nano")
    if options["make"] is None and options["synthetic"] is not None and options["model"] is None:
        raise UsageError("--synthetic makes the users' side; name a --model to talk, or --make FOLDER to keep it")
    if options["system_prompt"] is not None and options["system_prompt_text"] is not None:
        raise UsageError("give --system-prompt or --system-prompt-text, not both")
    if options["model"] is None:
        given = [
            name for name in ("voice", "system_prompt", "system_prompt_text", "greedy", "overwrite") if options[name]
        ]
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} is for --model, and none is named")
    if options["json_file"] is not None:
        check_writable(options["json_file"])
    options["prompt"] = role_prompt(options)


def _folder(stack: ExitStack, options: dict[str, Any]) -> Path | None:
    """Where the clips are, made if they have to be; None when that was all that was asked for."""
    from personaplex.evaluate.duplex.synthetic import make_set

    if options["folder"] is not None:
        return Path(options["folder"])
    kept: Path | None = options["make"]
    folder = kept or Path(stack.enter_context(TemporaryDirectory(prefix="personaplex-duplex-"))) / "set"
    with _progress(options) as say:
        make_set(folder, options["synthetic"] or CLIPS, options["seed"], _only(options), say)
    if kept is not None:
        note(f"made {kept}", quiet=options["quiet"])
    return folder if options["model"] is not None else None


def _evaluate(stack: ExitStack, folder: Path, options: dict[str, Any]) -> None:
    from personaplex.evaluate.duplex.benchmark import evaluate, find_human
    from personaplex.evaluate.duplex.clips import find_clips
    from personaplex.evaluate.duplex.scores import Scorer

    task: Any = _TASKS.get(options["task"])
    clips = find_clips(folder, options["out"], task, _only(options))
    human = find_human(clips, options["human"])
    ear, name = _ear(stack, clips, options)
    talked = _talk(clips, options) if options["model"] is not None else None
    keeps = options["keep_words"] or talked is not None
    scorer = Scorer(ear, name, human, options["agent_channel"], keeps)
    about = {"folder": None if options["folder"] is None else str(folder)} | _about(talked, options)
    with _progress(options) as say:
        result = evaluate(clips, scorer, about, talked.failures if talked else (), say)
    _show(result, talked, options)


def _only(options: dict[str, Any]) -> list[Task]:
    known: dict[str, Any] = _TASKS
    return [known[name] for name in options["only"] or _TASKS]


def _ear(stack: ExitStack, clips: list[Clip], options: dict[str, Any]) -> tuple[Callable[[], EngineEar], str]:
    """What opens the recogniser when it is needed, and its name. Raises now if it will be and cannot be had."""
    from personaplex.cascade.registry import default_recogniser, find_engine, parse_choice
    from personaplex.evaluate.hearing import EngineEar

    name = options["recogniser"] or default_recogniser()
    if options["model"] is not None or any(not (clip.results / "output.json").exists() for clip in clips):
        find_engine("recogniser", parse_choice(name).name).check()
    opened: list[EngineEar] = []

    def open_once() -> EngineEar:
        if not opened:
            opened.append(EngineEar(name))
            stack.callback(opened[0].close)
        return opened[0]

    return open_once, name


def _talk(clips: list[Clip], options: dict[str, Any]) -> Talked:
    from personaplex.evaluate.duplex.conversations import talk_through
    from personaplex.runtime.engine import Engine
    from personaplex.runtime.limits import Limits

    there = [clip for clip in clips if (clip.results / "output.wav").exists()]
    if there and not options["overwrite"]:
        raise UsageError(
            f"{there[0].results / 'output.wav'} is there already; score it without --model, name another place with "
            "--out, or replace it with --overwrite"
        )
    quiet, slots = options["quiet"], min(options["slots"], len(clips))
    note_blas(quiet=quiet)
    note(f"loading {options['model']}", quiet=quiet)
    # Nobody asks when the user speaks: the benchmark knows.
    with Engine(options["model"], slots, limits=Limits(voice_activity=None)) as engine, _progress(options) as say:
        settings = _settings(engine, options)
        channel = options["agent_channel"]
        return talk_through(engine, clips, settings, seed=options["seed"], slots=slots, agent_channel=channel, say=say)


def _settings(engine: Engine, options: dict[str, Any]) -> Callable[[Task], Settings]:
    """How a conversation of each task starts."""
    from personaplex.conversation import Settings
    from personaplex.evaluate.duplex.conversations import PROMPTS_BY_TASK

    voice = find_voice(options["voice"]) if options["voice"] else None
    sampling = {"greedy": True} if options["greedy"] else None
    if not engine.model.config.prompts:
        note(TALKS_AS_ITSELF, quiet=options["quiet"])
        return lambda _: Settings("", "", sampling=sampling)
    chosen: str | None = options["prompt"]
    return lambda task: Settings(voice, PROMPTS_BY_TASK[task] if chosen is None else chosen, sampling=sampling)


def _about(talked: Talked | None, options: dict[str, Any]) -> dict[str, Any]:
    from personaplex.bench.machine import commit, describe_machine

    about = {
        "model": options["model"],
        "seed": options["seed"],
        "agent_channel": options["agent_channel"],
        "human": None if options["human"] is None else str(options["human"]),
        "machine": describe_machine(),
        "commit": commit(),
    }
    if talked is not None:
        about |= {
            "voice": options["voice"],
            "prompt": options["prompt"],
            "greedy": options["greedy"],
            "slots": options["slots"],
            "sound_seconds": round(talked.sound_seconds, 2),
            "talk_seconds": round(talked.seconds, 2),
        }
    return about


def _show(result: Result, talked: Talked | None, options: dict[str, Any]) -> None:
    quiet = options["quiet"]
    if talked is not None:
        faster = talked.sound_seconds / talked.seconds
        note(
            f"{talked.sound_seconds:.0f} s of calls in {talked.seconds:.0f} s: {faster:.1f} times real time",
            quiet=quiet,
        )
    show(result, options["json_file"], quiet=quiet)
    lines = result.about["left_out"]
    if lines:
        click.echo("\nOf the benchmark, but not here:")
        for line in lines:
            click.echo(f"- {line}")
    if short := result.about["shorter_than_input"]:
        note(
            f"note: outputs that are over 1 s shorter than their inputs: {short}; what they lack is not counted",
            quiet=quiet,
        )
    if result.about["recogniser"] == "pocketsphinx":
        note(
            "note: the words are pocketsphinx's, which errs often; the benchmark uses parakeet-tdt-0.6b-v2", quiet=quiet
        )


@contextmanager
def _progress(options: dict[str, Any]) -> Iterator[Callable[[str], None]]:
    """How far it is: in one line that changes, on a terminal; else only how it ended."""
    last = ""
    live = sys.stderr.isatty() and not options["quiet"]

    def say(message: str) -> None:
        nonlocal last
        last = message
        if live:
            click.echo(f"\r{message}", nl=False, err=True)

    yield say
    if last:
        note(f"\r{last}" if live else last, quiet=options["quiet"])
