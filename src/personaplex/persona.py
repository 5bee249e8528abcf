"""Who the agent is: a role prompt, voices that suit it and a way of choosing words, by name."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from personaplex.conversation import Settings
from personaplex.engine.sampling import Sampling
from personaplex.errors import PersonaError, UsageError

BUILT_IN = Path(__file__).parent / "personas.toml"


@dataclass(frozen=True)
class Parts:
    """What a persona chooses of the cascade; None leaves it to whoever opens the conversation.

    Engines are NAME or NAME:MODEL; `voice` is one of the synthesiser's, `style` is added to the role prompt. `delegate`
    is a language model that answers in the duplex model's place (experimental).
    """

    recogniser: str | None = None
    llm: str | None = None
    synthesiser: str | None = None
    voice: str | None = None
    language: str | None = None
    style: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    delegate: str | None = None


@dataclass(frozen=True)
class Persona:
    """A named role. Of `voices` the first that a model has is taken; `sampling` changes parts of the model's own.

    `cascade` is what only the cascade reads.
    """

    name: str
    prompt: str
    voices: tuple[str, ...] = ()
    sampling: Mapping[str, float | int | bool] = field(default_factory=dict)
    cascade: Parts = Parts()

    def settings(self, model_voices: Sequence[str], seed: int | None = None) -> Settings:
        """How a conversation with this persona starts, on a model with `model_voices`."""
        voice = next((voice for voice in self.voices if voice in model_voices), None)
        return Settings(voice, self.prompt, seed, self.sampling or None)


def read_personas(*files: Path) -> dict[str, Persona]:
    """The built-in personas, and those of `files` (TOML), which may replace them.

    Raises PersonaError naming the file and what in it is unknown, missing or of the wrong type.
    """
    found: dict[str, Persona] = {}
    for path in (BUILT_IN, *files):
        try:
            entries = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PersonaError(f"the personas in {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PersonaError(f"the personas in {path} are not TOML: {error}") from error
        found |= {name: _persona(f"{path}: persona {name!r}", name, entry) for name, entry in entries.items()}
    return found


def _persona(where: str, name: str, entry: object) -> Persona:
    if not isinstance(entry, dict):
        raise PersonaError(f"{where} must be a table with a prompt")
    if unknown := sorted(set(entry) - {"prompt", "voices", "sampling", "cascade"}):
        known = "prompt, voices, sampling and cascade"
        raise PersonaError(f"{where} has an unknown field {unknown[0]!r}; known are {known}")
    prompt, voices, sampling = entry.get("prompt"), entry.get("voices", []), entry.get("sampling", {})
    if not isinstance(prompt, str) or not prompt.strip():
        raise PersonaError(f"{where} needs a prompt, a text")
    if not isinstance(voices, list) or not all(isinstance(voice, str) for voice in voices):
        raise PersonaError(f"{where}: voices must be a list of names")
    fields = {f.name for f in dataclasses.fields(Sampling)}
    if not isinstance(sampling, dict) or set(sampling) - fields:
        raise PersonaError(f"{where}: sampling must be a table of {', '.join(sorted(fields))}")
    if not all(isinstance(value, int | float) for value in sampling.values()):
        raise PersonaError(f"{where}: sampling must hold numbers")
    try:
        Sampling(**sampling)
    except UsageError as error:
        raise PersonaError(f"{where}: {error}") from error
    return Persona(name, prompt, tuple(voices), sampling, _parts(f"{where}: cascade", entry.get("cascade", {})))


def _parts(where: str, table: object) -> Parts:
    fields = {f.name for f in dataclasses.fields(Parts)}
    if not isinstance(table, dict) or set(table) - fields:
        raise PersonaError(f"{where} must be a table of {', '.join(sorted(fields))}")
    for name, value in table.items():
        if name == "temperature":
            fits, wanted = _is_number(value) and 0 <= value <= 2, "a number from 0 to 2"
        elif name == "max_tokens":
            fits, wanted = type(value) is int and value > 0, "a whole number above 0"
        else:
            fits, wanted = isinstance(value, str) and bool(value.strip()), "a text"
        if not fits:
            raise PersonaError(f"{where}: {name} is {value!r}; expected {wanted}")
    return Parts(**table)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
