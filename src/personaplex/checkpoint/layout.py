"""What a folder of weights is: PersonaPlex or Moshi in the reference's layout, Mimi alone, or nothing we can read.

The reference's own folders hardly say what they are: PersonaPlex's config.json names no sizes, and Moshi had none at
first. What they do not say is read off the names of their tensors.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from personaplex.checkpoint.sources import KnownFile, what_works
from personaplex.checkpoint.tensors import TensorFile
from personaplex.checkpoint.transformers_mimi import read_mimi_config
from personaplex.config import LMConfig, MimiConfig, ModelConfig, Provenance, from_json, read_json
from personaplex.errors import CheckpointError
from personaplex.units import N_CODEBOOKS

CONFIG_FILE = "config.json"
LM_FILE = "model.safetensors"

_BESIDE_SIZES = {"model_type", "version", "moshi_name", "mimi_name", "tokenizer_name", "lm_gen_config", "model_id"}
"""In Kyutai's config.json beside the sizes; nothing that a network is built from."""


def read_config(folder: Path) -> ModelConfig:
    """What the model in `folder` is made of. Raises ConfigError, and CheckpointError for a layout we cannot read."""
    path = folder / CONFIG_FILE
    data = read_json(path)
    check_kind(data, str(folder))
    if data.get("model_type") == "mimi":
        raise CheckpointError(
            f"{folder} holds Mimi alone, which `personaplex codec` takes; to talk, a language model is needed: "
            + what_works()
        )
    if _is_kyutais(data):
        return _kyutais(data, str(path))
    config = ModelConfig.read(path)
    if "lm" in data or not (folder / LM_FILE).is_file():
        return config
    names = TensorFile(folder / LM_FILE).entries
    if not {"text_emb.weight", "depformer_text_emb.weight", "linears.0.weight"} <= set(names):
        raise CheckpointError(f"{folder / LM_FILE} holds no PersonaPlex and no Moshi; {what_works()}")
    if f"linears.{N_CODEBOOKS}.weight" in names:
        return config
    return dataclasses.replace(config, lm=dataclasses.replace(config.lm, dep_q=N_CODEBOOKS), prompts=False)


def read_transformers_mimi(folder: Path) -> MimiConfig | None:
    """The codec in `folder`, if that is in the layout of Hugging Face's `MimiModel`. Raises ConfigError."""
    path = folder / CONFIG_FILE
    data = read_json(path)
    return read_mimi_config(data, str(path)) if data.get("model_type") == "mimi" else None


def recorded(folder: Path) -> dict[str, KnownFile]:
    """The files that a converted folder's own config.json tells of, by name; none of any other folder.

    Raises ConfigError.
    """
    about = read_json(folder / CONFIG_FILE).get("provenance")
    if about is None:
        return {}
    files = from_json(Provenance, about, f"{folder / CONFIG_FILE}.provenance").files
    return {file.name: KnownFile(file.n_bytes, file.sha256) for file in files}


def check_kind(config: dict[str, Any], where: str) -> None:
    """Raise CheckpointError if a config.json says that what lies beside it is of a kind we cannot read."""
    kind = config.get("model_type", "personaplex")
    transformers_moshi = kind == "moshi" and "dim" not in config and not set(config) <= _BESIDE_SIZES
    if kind not in ("personaplex", "moshi", "mimi") or transformers_moshi:
        raise CheckpointError(f"{where} holds a model of another kind ({kind}); {what_works()}")


def _is_kyutais(data: dict[str, Any]) -> bool:
    return data.get("model_type") == "moshi" or ("dim" in data and "lm" not in data)


def _kyutais(data: dict[str, Any], where: str) -> ModelConfig:
    """Kyutai's config.json: the sizes of the language model, beside what other models of theirs have and these not."""
    sizes = {f.name for f in dataclasses.fields(LMConfig)}
    given = {name: value for name, value in data.items() if name in sizes or (value and name not in _BESIDE_SIZES)}
    lm = from_json(LMConfig, {"dep_q": N_CODEBOOKS, **given}, where)
    return ModelConfig(lm=lm, prompts=lm.dep_q != N_CODEBOOKS)
