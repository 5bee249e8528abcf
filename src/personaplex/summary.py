"""What a model is: architecture, files, bits per part, licence, and how many conversations fit into memory."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import LM_WEIGHTS, find
from personaplex.checkpoint.load import default_dtype, expected_tensors
from personaplex.checkpoint.rules import Rule, lm_rules
from personaplex.checkpoint.sources import BUNDLED, SOURCES, UNKNOWN, Licence, licence_of
from personaplex.checkpoint.tensors import Entry, TensorFile, scale_name
from personaplex.config import PARTS
from personaplex.errors import CheckpointError
from personaplex.models.lm import LanguageModel
from personaplex.nn.state import parameters
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import available_bytes, plan
from personaplex.units import FRAME_RATE, N_CODEBOOKS


@dataclass(frozen=True)
class PartSize:
    """A part of the language model as it is stored: how many values, and bits for each, scales included."""

    part: str
    parameters: int
    bits: float


@dataclass(frozen=True)
class Sessions:
    """What so many conversations at once take, in bytes, and whether this machine has that."""

    sessions: int
    n_bytes: int
    fits: bool | None


@dataclass(frozen=True)
class Summary:
    """What is known of a model; `folder` is None for a known repository that is not on this machine.

    `made_of` is what it was converted from, and by what. `verified` are the files that were read and have the SHA-256
    that is known of them; None where nobody asked.
    """

    model: str
    licence: Licence
    gated: bool
    folder: str | None
    architecture: dict[str, Any]
    files: dict[str, int]
    parts: list[PartSize]
    parameters: dict[str, int]
    available: int | None
    most_sessions: int | None
    dtype: str | None
    memory: list[Sessions]
    made_of: str = ""
    verified: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        return asdict(self)


def summarise(model: str, sessions: int, *, verify: bool = False) -> Summary:
    """Look at nano, a folder or a repository, of which nothing is downloaded; memory for 1 to `sessions` conversations.

    With `verify`, every file whose SHA-256 is known is read. Raises CheckpointError for what cannot be read, what is
    another file than it should be, or a repository that is neither known nor here.
    """
    path, source = find(model), SOURCES.get(model)
    if path is None:
        if source is None:
            raise CheckpointError(f"{model} is not on this machine, and not one of {', '.join(SOURCES)}")
        if verify:
            raise CheckpointError(f"{model} is not on this machine, so there is nothing to verify")
        files = {name: file.n_bytes for name, file in source.files.items()}
        return Summary(
            model, source.licence, source.gated, None, {"kind": source.kind}, files, [], {}, None, None, None, []
        )
    folder = ModelFolder(path)
    files = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted([*path.glob("*"), *path.glob("voices/*")])
        if file.is_file() and not file.name.startswith(".")
    }
    licence = licence_of(model) if model == BUNDLED or source else _licence(path)
    gated = bool(source and source.gated)
    verified = folder.verify(source.files if source else None) if verify else None
    codec, alone = folder.codec
    about: dict[str, Any] = {
        "kind": "mimi",
        "codec": {"codebooks": codec.quantizer.n_q, "used": codec.num_codebooks, "bins": codec.quantizer.bins},
    }
    counts = {"codec": _n_values(TensorFile(folder.codec_file).entries)}
    if alone or not any(next(path.glob(name), None) for name in LM_WEIGHTS):
        return Summary(
            model, licence, gated, str(path), about, files, [], counts, None, None, None, [], verified=verified
        )
    about |= _architecture(folder)
    parts = _parts(folder)
    counts |= {
        "stored": sum(part.parameters for part in parts),
        "live": sum(array.size for array in parameters(LanguageModel(folder.config.lm, N_CODEBOOKS)).values()),
    }
    available = available_bytes()
    plans = [plan(folder, n, Limits()) for n in range(1, sessions + 1)]
    memory = [Sessions(p.slots, p.total, None if available is None else p.total <= available) for p in plans]
    room = None if available is None else plans[0].most_slots(available)
    dtype = str(default_dtype()).split(".")[-1]
    made = folder.config.provenance
    made_of = f"{made.source}, by {made.converter}" if made else ""
    return Summary(
        model, licence, gated, str(path), about, files, parts, counts, available, room, dtype, memory, made_of, verified
    )


def _architecture(folder: ModelFolder) -> dict[str, Any]:
    config = folder.config
    lm = config.lm
    return {
        "kind": "personaplex" if config.prompts else "moshi",
        "prompts": ["voice", "role"] if config.prompts else [],
        "voices": folder.voices.names(),
        "temporal": {
            "layers": lm.num_layers,
            "width": lm.dim,
            "heads": lm.num_heads,
            "window_seconds": round(lm.context / FRAME_RATE, 2),
        },
        "depformer": {
            "layers": lm.depformer_num_layers,
            "width": lm.depformer_dim,
            "heads": lm.depformer_num_heads,
            "steps_stored": lm.dep_q,
            "steps_used": N_CODEBOOKS,
        },
    }


def _parts(folder: ModelFolder) -> list[PartSize]:
    """Values and bits of each part, counted in the file after it has been checked."""
    file, config = folder.open_lm(), folder.config
    rules = list(lm_rules(config.lm, N_CODEBOOKS))
    file.check(expected_tensors(rules, config.quantization))
    sizes = {part: [0, 0] for part in (*PARTS, "norms")}
    for rule in rules:
        size = sizes[rule.part or "norms"]
        for name, shape in rule.sources.items():
            size[0] += prod(shape)
            size[1] += sum(file.entries[stored].n_bytes for stored in _stored(rule, name) if stored in file.entries)
    return [PartSize(part, n, round(8 * n_bytes / n, 3)) for part, (n, n_bytes) in sizes.items() if n]


def _stored(rule: Rule, name: str) -> list[str]:
    """The names under which a matrix may lie in a file: plain, as int8 with a scale, or packed with two more."""
    stem = name.removesuffix("weight")
    return [name, scale_name(name), *([f"{stem}scales", f"{stem}biases"] if rule.part else [])]


def _n_values(entries: dict[str, Entry]) -> int:
    scales = {scale_name(name) for name in entries}
    return sum(prod(entry.shape) for name, entry in entries.items() if name not in scales)


def _licence(path: Path) -> Licence:
    """What the model card in a folder says: its own licence, else that of the known model it was made from."""
    try:
        head = (path / "README.md").read_text(encoding="utf-8").split("---")[1]
    except (OSError, UnicodeDecodeError, IndexError):
        return UNKNOWN
    said = dict(re.findall(r"^(\w+): *(\S.*?) *$", head, re.MULTILINE))
    if base := SOURCES.get(said.get("base_model", "")):
        return base.licence
    name = said.get("license_name") if said.get("license") == "other" else said.get("license")
    return Licence(name or UNKNOWN.name, said.get("license_link", ""))
