"""Writing a small checkpoint: matrices as int8 with a scale per row, in files that `checkpoint/tensors.py` reads.

Names are the reference's; what is stored as int8 loads as float32, so nothing else has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx

from personaplex.checkpoint.tensors import scale_name
from personaplex.config import ModelConfig
from personaplex.errors import CheckpointError
from personaplex.files import whole_file

Keep = Callable[[str, tuple[int, ...]], bool]

_LEVELS = 127
_LARGEST_HALF = 65_504.0


def keep_nothing(name: str, shape: tuple[int, ...]) -> bool:  # noqa: ARG001
    """No tensor stays float but those that always do."""
    return False


def write_int8(path: Path, tensors: Mapping[str, mx.array], keep: Keep = keep_nothing) -> None:
    """Write float `tensors` (reference names) to `path`, whole or not at all, with matrices as int8.

    Vectors (at most one axis longer than 1) stay float32. Codebooks, and what `keep(name, shape)` names, are float16,
    or float32 where that is too narrow; a codebook's usage becomes 1, and its sums the centroids themselves.
    Raises CheckpointError naming a tensor with values that are not finite, OutputError when `path` cannot be written.
    """
    stored: dict[str, mx.array] = {}
    for name, array in _with_plain_codebooks(tensors).items():
        array = array.astype(mx.float32)
        if not bool(mx.isfinite(array).all().item()):
            raise CheckpointError(f"{name!r} holds values that are not finite; it was not written to {path}")
        if _is_vector(array.shape):
            stored[name] = array
        elif name.endswith(".embedding_sum") or keep(name, array.shape):
            fits = float(mx.abs(array).max()) <= _LARGEST_HALF
            stored[name] = array.astype(mx.float16) if fits else array
        elif scale_name(name) in tensors:
            raise CheckpointError(f"{scale_name(name)!r} is a tensor of its own; {name!r} cannot be stored as int8")
        else:
            stored[name], stored[scale_name(name)] = as_int8(array)
    with whole_file(path) as temporary:
        mx.save_safetensors(str(temporary), stored, metadata={"format": "pt"})


def as_int8(array: mx.array) -> tuple[mx.array, mx.array]:
    """Float values [rows, ...] as int8 and the scale [rows] of each row: off by at most half a scale."""
    rows = array.reshape(array.shape[0], -1)
    scale = mx.abs(rows).max(axis=1) / _LEVELS
    # A row so small that its scale is no ordinary float32 is as good as zero, and division by it is not safe.
    scale = mx.where(scale < 1e-30, 0.0, scale)
    levels = mx.where(scale[:, None] > 0, mx.round(rows / mx.maximum(scale, 1e-30)[:, None]), 0)
    return mx.clip(levels, -_LEVELS, _LEVELS).astype(mx.int8).reshape(array.shape), scale


def write_config(path: Path, config: ModelConfig) -> None:
    """Write a `config.json` that `ModelConfig.read` reads as `config`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(config.to_json(), encoding="utf-8")


def _is_vector(shape: tuple[int, ...]) -> bool:
    return sum(n > 1 for n in shape) < 2


def _with_plain_codebooks(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The same tables with usage 1: sums of thousands of latents are no numbers for float16, centroids are."""
    plain = dict(tensors)
    for name in tensors:
        usage = name.removesuffix("embedding_sum") + "cluster_usage"
        if name.endswith(".embedding_sum") and usage in tensors:
            plain[name] = tensors[name] / mx.maximum(tensors[usage], 1e-5)[:, None]
            plain[usage] = mx.ones_like(tensors[usage])
    return plain
