"""The way back: a network as a file of the reference's layout.

A rule's transform only moves values, so its transpose is its inverse, and MLX makes the transpose of anything that it
can differentiate: no second list of rules is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import mlx.core as mx
from mlx import nn

from personaplex.checkpoint.rules import Rule, lm_rules, mimi_rules
from personaplex.config import MimiConfig
from personaplex.errors import CheckpointError
from personaplex.files import whole_file
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.state import parameters

COUNTS = ("cluster_usage", "_initialized")
"""Tensors of a codebook that are not kept: with all counts 1 its running sums are the centroids themselves."""


def save_mimi(path: Path, model: Mimi, config: MimiConfig) -> None:
    """Write a codec that keeps all of its codebooks. Raises CheckpointError, or OutputError."""
    _save(path, model, mimi_rules(config))


def save_lm(path: Path, model: LanguageModel) -> None:
    """Write a language model that keeps all of its depformer steps. Raises CheckpointError, or OutputError."""
    _save(path, model, lm_rules(model.config, model.depformer.n_steps))


def _save(path: Path, model: nn.Module, rules: Iterable[Rule]) -> None:
    values = parameters(model)
    tensors: dict[str, mx.array] = {}
    for rule in rules:
        counts = {name: shape for name, shape in rule.sources.items() if name.endswith(COUNTS)}
        moved = {name: shape for name, shape in rule.sources.items() if name not in counts}
        size = values[rule.target].size if rule.target else 0
        if size != sum(prod(shape) for shape in moved.values()):
            raise CheckpointError(
                f"{path} cannot be written: the network does not keep all of {next(iter(moved))!r}; "
                "load it with every codebook and depformer step"
            )
        tensors |= {name: mx.ones(shape) for name, shape in counts.items()}
        if rule.target:
            value = values[rule.target]
            sources = [(mx.ones if name in counts else mx.zeros)(shape) for name, shape in rule.sources.items()]
            _, back = mx.vjp(lambda *arrays, rule=rule: rule.transform(list(arrays)), sources, [value])
            found = dict(zip(rule.sources, back, strict=True))
            tensors |= {name: mx.contiguous(found[name].astype(value.dtype)) for name in moved}
    with whole_file(path) as temporary:
        mx.save_safetensors(str(temporary), tensors)
