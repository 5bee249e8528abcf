"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personaplex.accelerator import blas
from personaplex.errors import PersonaError
from personaplex.files import cache_folder
from personaplex.text import PROMPTS

if TYPE_CHECKING:
    from personaplex.persona import Persona

DEFAULT_MODEL = "nvidia/personaplex-7b-v1"
DEFAULT_PERSONA = "assistant"
TALKS_AS_ITSELF = "note: this model is Moshi: its voice and role cannot be set, so it talks as itself, without them"

model_option = click.option(
    "--model",
    metavar="nano|DIR|REPO",
    default=DEFAULT_MODEL,
    envvar="PERSONAPLEX_MODEL",
    show_default=True,
    show_envvar=True,
    help="nano, the small model in this package; a model's folder; or a Hugging Face repository (docs/weights.md).",
)
kv_bits_option = click.option(
    "--kv-bits",
    type=click.Choice(["16", "8"]),
    default="16",
    show_default=True,
    help="Bits of the window's keys and values: 8 takes half their memory.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")

_SAMPLING = [
    click.option("--text-temp", type=float, help="Text temperature (default: the model's, 0.7 for PersonaPlex)."),
    click.option("--text-top-k", type=int, help="Text top-k, 0 for all (default: the model's, 25)."),
    click.option("--audio-temp", type=float, help="Audio temperature (default: the model's, 0.8)."),
    click.option("--audio-top-k", type=int, help="Audio top-k, 0 for all (default: the model's, 250)."),
    click.option(
        "--repetition-penalty", type=float, help="Push down tokens of the last 30 frames; 1 is off, the default."
    ),
    click.option("--greedy", is_flag=True, help="Always the likeliest token."),
]
_FRESH_SEED = click.option(
    "--seed", type=int, help="The same seed gives the same answer (default: a fresh one, reported)."
)
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="The same seed gives the same answers and numbers."
)


def some_of(*known: str) -> Callable[[click.Context, click.Parameter, str | None], list[str] | None]:
    """Read a list with commas: some of the `known` words, each once; anything else is wrong usage."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
        if value is None:
            return None
        names = [name.strip() for name in value.split(",")]
        if set(names) - set(known) or len(set(names)) < len(names):
            raise click.BadParameter(f"{value!r} is not some of {','.join(known)}, each once")
        return names

    return parse


_PERSONA = [
    click.option("--persona", metavar="NAME", help="Who the agent is: voice, role and sampling (default assistant)."),
    click.option(
        "--personas",
        "persona_files",
        multiple=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Personas of your own (TOML), beside the built-in ones.",
    ),
]


def persona_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a persona."""
    for option in reversed(_PERSONA):
        command = option(command)
    return command


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose tokens."""
    for option in reversed([*_SAMPLING, _FRESH_SEED]):
        command = option(command)
    return command


def repeatable_sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose tokens, with a seed that is the same in every run."""
    for option in reversed([*_SAMPLING, seed_option]):
        command = option(command)
    return command


def sampling_changes(options: Mapping[str, Any]) -> dict[str, float | int | bool]:
    """What `sampling_options` change, as fields of `Sampling`."""
    values = {
        "text_temperature": options["text_temp"],
        "text_top_k": options["text_top_k"],
        "audio_temperature": options["audio_temp"],
        "audio_top_k": options["audio_top_k"],
        "repetition_penalty": options["repetition_penalty"],
        "greedy": options["greedy"] or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def check_sampling(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a seed or a value of `sampling_options` that is out of range: before a model is loaded."""
    from personaplex.engine.sampling import Sampling, check_seed

    if options["seed"] is not None:
        check_seed(options["seed"])
    Sampling(**sampling_changes(options))  # type: ignore[arg-type]


def find_persona(options: Mapping[str, Any]) -> Persona:
    """What `--persona` names. Raises PersonaError."""
    from personaplex.persona import read_personas

    known, name = read_personas(*options["persona_files"]), options["persona"] or DEFAULT_PERSONA
    if name not in known:
        raise PersonaError(f"unknown persona {name!r}; there are {', '.join(sorted(known))}")
    return known[name]


def role_prompt(options: Mapping[str, Any]) -> str | None:
    """What `--system-prompt` or `--system-prompt-text` say, if anything. Raises PersonaError."""
    if options["system_prompt_text"] is not None:
        return str(options["system_prompt_text"])
    name = options["system_prompt"]
    if not name:
        return None
    if name in PROMPTS:
        return str(name)
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PersonaError(
            f"unknown prompt {name!r}: no such file, and the presets are {', '.join(PROMPTS)}; "
            "--system-prompt-text takes a role in your words"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PersonaError(f"the prompt file {name} cannot be read as text: {error}") from error


def own_voices() -> Path:
    """The folder of the user's own voices: PERSONAPLEX_VOICES, or one below XDG_DATA_HOME (~/.local/share)."""
    if chosen := os.environ.get("PERSONAPLEX_VOICES"):
        return Path(chosen).expanduser()
    return data_folder() / "voices"


def data_folder() -> Path:
    """Where what is the user's own lies: below XDG_DATA_HOME (~/.local/share)."""
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "personaplex"


def find_voice(name: str) -> str:
    """The file of the user's own voice `name`; a name that is none of theirs is the model's to know."""
    own = own_voices() / f"{name}.safetensors"
    return str(own) if "/" not in name and name and own.is_file() else name


def known_voices(of_model: Sequence[str]) -> list[str]:
    """Names of the user's own voices and of the model's."""
    from personaplex.checkpoint.user_voices import UserVoices

    return [*UserVoices(own_voices()).names(), *of_model]


def kept_prompts() -> Path:
    """Where what was read of voices and roles is kept."""
    return cache_folder() / "prompts"


def note(message: str, *, quiet: bool = False) -> None:
    """One line for the person, on stderr."""
    if not quiet:
        click.echo(message, err=True)


def note_blas(*, quiet: bool = False) -> None:
    """Say once how to get a fast BLAS where there is none."""
    if blas.advice:
        note(f"note: {blas.advice}", quiet=quiet)
