"""The layout of the conversions that are on the Hub: `aufklarer/PersonaPlex-7B-MLX-4bit` and `-8bit`.

Three files instead of one, each with names of its own (speech-swift's converter); scales and biases are float16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from personaplex.config import LMConfig, ModelConfig, QuantizationConfig, SamplingDefaults, from_json
from personaplex.errors import ConfigError

FILES = ("temporal.safetensors", "depformer.safetensors", "embeddings.safetensors")


def reference_name(file: str, name: str) -> str:
    """The reference's name of the tensor that `file` calls `name`."""
    part = file.removesuffix(".safetensors")
    if part == "temporal":
        return name if name.startswith("out_norm.") else f"transformer.{name}"
    return f"depformer.{name}" if part == "depformer" and name.startswith("layers.") else name


def read_config(path: Path) -> ModelConfig:
    """Their `config.json` as ours. Raises ConfigError naming the file and the field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    theirs = from_json(_Config, data, str(path))
    try:
        return theirs.as_ours
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


@dataclass(frozen=True)
class _Temporal:
    dim: int
    num_layers: int
    num_heads: int
    hidden_scale: float
    n_q: int
    card: int
    text_card: int
    context: int
    max_period: float


@dataclass(frozen=True)
class _Depformer:
    dim: int
    num_layers: int
    num_heads: int
    dim_feedforward: int
    num_steps: int
    card: int
    text_card: int
    context: int  # wrong there (8), without effect in the reference, and not used here
    weights_per_step: bool
    multi_linear: bool

    FIXED: ClassVar[dict[str, Any]] = {"weights_per_step": True, "multi_linear": True}


@dataclass(frozen=True)
class _Mimi:
    """Said and not used: the codec is a copy of the reference's file."""

    sample_rate: int
    frame_rate: float
    num_codebooks: int
    codebook_size: int
    codebook_dim: int
    dimension: int
    seanet_ratios: tuple[int, ...]
    transformer_layers: int


@dataclass(frozen=True)
class _Quantization:
    bits: int
    group_size: int
    quantized_components: tuple[str, ...]


@dataclass(frozen=True)
class _Config:
    temporal: _Temporal
    depformer: _Depformer
    mimi: _Mimi
    sampling: SamplingDefaults
    delays: tuple[int, ...]
    voices: tuple[str, ...]
    model_type: str
    version: str
    base_model: str
    quantization: _Quantization | None = None

    @property
    def as_ours(self) -> ModelConfig:
        big, small, packed = self.temporal, self.depformer, self.quantization
        fields: dict[str, Any] = {
            **{name: getattr(big, name) for name in ("dim", "num_layers", "num_heads", "hidden_scale", "card")},
            **{name: getattr(big, name) for name in ("text_card", "context", "max_period")},
            **{f"depformer_{name}": getattr(small, name) for name in ("dim", "num_layers", "num_heads")},
        }
        lm = LMConfig(
            **fields,
            # They say the width inside the block, the reference what that is two thirds of.
            depformer_dim_feedforward=-(-3 * small.dim_feedforward // 2),
            dep_q=small.num_steps,
            delays=self.delays,
        )
        if lm.depformer_hidden != small.dim_feedforward:
            raise ConfigError(f"depformer.dim_feedforward: no block of {small.dim} channels is that wide inside")
        quantization = (
            QuantizationConfig.uniform(packed.bits, packed.group_size, packed.quantized_components) if packed else None
        )
        return ModelConfig(lm=lm, sampling=self.sampling, quantization=quantization, version=self.version)
