"""What `--bits` means for a model: bits and group size per part, and for `mixed` per layer (`recipes.toml`)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from personaplex.config import PARTS, PLAIN_BITS, LMConfig, Packing, PackingException, QuantizationConfig

NAMES = ("16", "8", "4", "mixed")
DEFAULT_GROUP_SIZE = 64
DEFAULT_PARTS = ("temporal", "depformer")
_LAYERS = {"temporal": "transformer.layers", "depformer": "depformer.layers"}


def quantization(
    bits: str, config: LMConfig, group_size: int | None = None, parts: Sequence[str] | None = None
) -> QuantizationConfig | None:
    """How a model of `config` is stored under the name `bits`; None when nothing is quantised.

    `group_size` replaces the name's own; parts that `parts` does not name stay plain.
    Raises ConfigError for a part or a group size that does not exist.
    """
    if bits == str(PLAIN_BITS):
        return None
    if bits != "mixed":
        return QuantizationConfig.uniform(int(bits), group_size or DEFAULT_GROUP_SIZE, tuple(parts or DEFAULT_PARTS))
    QuantizationConfig.uniform(PLAIN_BITS, DEFAULT_GROUP_SIZE, tuple(parts or ()))  # refuses a part that is none
    recipe = tomllib.loads(files(__package__).joinpath("recipes.toml").read_text("utf-8"))["mixed"]
    chosen = parts or PARTS
    packings: dict[str, Any] = {
        part: Packing(recipe[part]["bits"], group_size or recipe[part]["group_size"])
        for part in PARTS
        if part in chosen
    }
    counts = {"temporal": config.num_layers, "depformer": config.depformer_num_layers}
    exceptions = (
        PackingException(
            f"{_LAYERS[other['part']]}.{layer % counts[other['part']]}.{other.get('tensors', '*')}",
            other["bits"],
            group_size or other["group_size"],
        )
        for other in recipe.get("layers", [])
        if other["part"] in chosen
        for layer in other["layers"]
    )
    return QuantizationConfig(**packings, exceptions=tuple(exceptions))
