"""Which engines there are: the program's own, and those that other packages add under `personaplex.engines`.

An entry point names an `EngineSpec`. Another package's engine of the same name takes the place of our own.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, cast

from personaplex.cascade.engine import EndOfTurn, EngineSpec, Kind, Recogniser, Synthesiser, Thinker
from personaplex.errors import EngineError, UsageError

GROUP = "personaplex.engines"

_OWN = {
    "pocketsphinx": "personaplex.cascade.pocketsphinx:ENGINE",
    "faster-whisper": "personaplex.cascade.faster_whisper:ENGINE",
    "mlx-whisper": "personaplex.cascade.mlx_whisper:ENGINE",
    "parakeet-mlx": "personaplex.cascade.parakeet:ENGINE",
    "qwen3-asr": "personaplex.cascade.qwen_asr:ENGINE",
    "chat": "personaplex.cascade.chat:CHAT",
    "ollama": "personaplex.cascade.chat:OLLAMA",
    "mlx-lm": "personaplex.cascade.mlx_lm:ENGINE",
    "responder": "personaplex.cascade.responder:ENGINE",
    "flite": "personaplex.cascade.fallback_voices:FLITE",
    "espeak": "personaplex.cascade.fallback_voices:ESPEAK",
    "piper": "personaplex.cascade.piper:ENGINE",
    "kokoro": "personaplex.cascade.kokoro:ENGINE",
    "qwen3-tts": "personaplex.cascade.mlx_voices:QWEN3",
    "cosyvoice": "personaplex.cascade.mlx_voices:COSYVOICE",
    "personaplex": "personaplex.cascade.mlx_voices:PERSONAPLEX",
    "smart": "personaplex.cascade.smart_turn:ENGINE",
}
"""Names and objects. Here and not in the package's metadata, so that a checkout has them too."""


def survey() -> dict[str, EngineSpec[Any] | EngineError]:
    """Every engine by name, installed or not; for an entry point that is broken, what is wrong with it."""
    points = [EntryPoint(name, value, GROUP) for name, value in _OWN.items()]
    found: dict[str, EngineSpec[Any] | EngineError] = {}
    for point in [*points, *entry_points(group=GROUP)]:
        try:
            found[point.name] = _load(point)
        except EngineError as broken:
            found[point.name] = broken
    return found


def find_engines(kind: Kind | None = None) -> dict[str, EngineSpec[Any]]:
    """Every engine by name, installed or not; those whose entry point is broken are left out."""
    specs = {name: spec for name, spec in survey().items() if isinstance(spec, EngineSpec)}
    return {name: spec for name, spec in specs.items() if kind in (None, spec.kind)}


def _load(point: EntryPoint) -> EngineSpec[Any]:
    try:
        spec = point.load()
    except Exception as error:  # somebody else's module may raise anything
        raise EngineError(f"the engine {point.name} ({point.value}) cannot be loaded: {error}") from error
    if not isinstance(spec, EngineSpec):
        raise EngineError(f"the engine {point.name} ({point.value}) is {type(spec).__name__}; expected an EngineSpec")
    return spec


def default_recogniser() -> str:
    """What hears when nobody says: one that hears well, where it and its usual model are here, else pocketsphinx."""
    known = find_engines("recogniser")  # without those that are broken
    for name in ("parakeet-mlx", "mlx-whisper") if sys.platform == "darwin" else ("faster-whisper",):
        spec = known.get(name)
        if spec and spec.missing() is None and spec.ready is not None and spec.ready():
            return name
    return "pocketsphinx"


class Choice(NamedTuple):
    """An engine and, where it has several, its model."""

    name: str
    model: str | None = None


def parse_choice(text: str) -> Choice:
    """`NAME` or `NAME:MODEL`: "ollama:llama3.2:1b" -> ("ollama", "llama3.2:1b")."""
    name, colon, model = text.strip().partition(":")
    if not name or (colon and not model):
        raise UsageError(f"{text!r} names no engine; expected NAME or NAME:MODEL")
    return Choice(name, model or None)


def find_engine(kind: Kind, name: str) -> EngineSpec[Any]:
    """The engine `name`. Raises UsageError naming those there are, EngineError where its entry point is broken."""
    known = survey()
    found = known.get(name)
    if isinstance(found, EngineError):
        raise found
    if found is None or found.kind != kind:
        there = sorted(name for name, spec in known.items() if isinstance(spec, EngineSpec) and spec.kind == kind)
        what = "language model" if kind == "thinker" else kind  # as the options call it
        raise UsageError(f"unknown {what} {name!r}; there are {', '.join(there)}")
    return found


def _open(kind: Kind, choice: str, options: dict[str, Any]) -> Any:
    name, model = parse_choice(choice)
    return find_engine(kind, name).open(**options, **({} if model is None else {"model": model}))


def open_recogniser(choice: str, **options: Any) -> Recogniser:
    """Make the recogniser `choice`. Raises UsageError or EngineError; may take long, for it loads its model."""
    return cast(Recogniser, _open("recogniser", choice, options))


def open_thinker(choice: str, **options: Any) -> Thinker:
    """Make the language model `choice`, likewise."""
    return cast(Thinker, _open("thinker", choice, options))


def open_synthesiser(choice: str, **options: Any) -> Synthesiser:
    """Make the synthesiser `choice`, likewise."""
    return cast(Synthesiser, _open("synthesiser", choice, options))


def open_end_of_turn(choice: str, **options: Any) -> EndOfTurn:
    """Make what tells a turn's end from a pause, likewise."""
    return cast(EndOfTurn, _open("end of turn", choice, options))
