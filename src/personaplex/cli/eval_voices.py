"""`personaplex eval voices`: whether the model sounds like the voice it was given."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personaplex.cli.evaluation import evaluation_options, show
from personaplex.cli.options import find_voice, model_option, note, note_blas, role_prompt
from personaplex.errors import UsageError
from personaplex.files import check_writable

if TYPE_CHECKING:
    from personaplex.model import PersonaPlex
    from personaplex.voice import Voice

DEFAULT_QUESTIONS = 4


@click.command("voices")
@click.argument("recordings", nargs=-1, metavar="[RECORDING|FOLDER]...", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--voice",
    "names",
    multiple=True,
    metavar="NAME|FILE",
    help="One of the model's or of your own, or a recording to clone; may be repeated (default: all of the model's).",
)
@click.option(
    "--questions",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Ask N synthesised questions instead of recordings (default {DEFAULT_QUESTIONS}).",
)
@click.option(
    "--embedding",
    default="simple",
    show_default=True,
    metavar="simple|statistics|FILE.onnx|MODULE:ATTRIBUTE",
    help="What tells speakers apart.",
)
@click.option("--system-prompt", metavar="NAME|FILE", help="The agent's role: a preset, or a file with a text.")
@click.option("--system-prompt-text", metavar="TEXT", help="The agent's role in your words.")
@click.option("--max-seconds", type=float, metavar="S", help="Longest answer after the recording (default 16).")
@evaluation_options
def command(
    recordings: tuple[Path, ...],
    model: str,
    names: tuple[str, ...],
    questions: int | None,
    embedding: str,
    max_seconds: float | None,
    seed: int,
    json_file: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Have the model answer in each voice, and compare its own speech with every voice prompt.

    Similarity to the own voice prompt, how often that is the nearest, pitch and formants; and controls that must score
    lower: prompts of other voices, and answers in them. Without recordings, questions are synthesised.
    """
    from personaplex.engine.sampling import check_seed
    from personaplex.evaluate.recordings import find_recordings
    from personaplex.evaluate.sentences import synthesised
    from personaplex.evaluate.voices.embedding import find_embedding
    from personaplex.evaluate.voices.run import Terms, evaluate_voices
    from personaplex.evaluate.voices.table import confusions

    check_seed(seed)
    if recordings and questions is not None:
        raise UsageError("give recordings or --questions, not both")
    if max_seconds is not None and not 0 < max_seconds < 3600:
        raise UsageError(f"--max-seconds is {max_seconds}; it must be more than 0, and less than 3600")
    if len(set(names)) < len(names):
        raise UsageError("a --voice is named twice; each is compared with all others anyway")
    if json_file is not None:
        check_writable(json_file)
    role, teller = role_prompt(options), find_embedding(embedding)
    asked = find_recordings(recordings) if recordings else synthesised(questions or DEFAULT_QUESTIONS, seed)
    note_blas(quiet=quiet)
    loaded, voices = _load(model, names)
    terms = Terms(teller, role if role is not None else loaded.default_prompt, seed, max_seconds)
    about = {"model": model, "fingerprint": loaded.folder.fingerprint, "embedding": embedding, "prompt": terms.prompt}
    result = evaluate_voices(loaded, voices, asked, terms, about=about, say=partial(note, quiet=quiet))
    show(result, json_file, quiet=quiet)
    if taken := confusions(result.about["nearest"]):
        click.echo(f"\n{taken}")


def _load(model: str, names: tuple[str, ...]) -> tuple[PersonaPlex, dict[str, Voice]]:
    from personaplex.engine.prompt import NO_PROMPTS
    from personaplex.model import PersonaPlex

    loaded = PersonaPlex.from_pretrained(model)
    if not loaded.config.prompts:
        raise UsageError(NO_PROMPTS)
    return loaded, {name: loaded.load_voice(find_voice(name)) for name in names or loaded.list_voices()}
