"""Quantisation: MLX's affine layout, made so that bfloat16 scales cost nothing.

A group's values are `code * scale + bias`. Scale and bias are rounded to the type they are stored in before the codes
are chosen, so that the codes make up for the rounding: what a GPU multiplies is what was measured. (`mx.quantize`
rounds them afterwards, which at 8 bits adds a quarter to the error.)
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
from mlx import nn

from personaplex.checkpoint.rules import Rule
from personaplex.config import Packing, QuantizationConfig
from personaplex.errors import ConfigError
from personaplex.models.lm import LanguageModel

Packed = tuple[mx.array, mx.array, mx.array]
"""Codes (uint32), scales and biases."""

SCALE_TYPE = mx.bfloat16
WRITTEN_BITS = (4, 8)
AT_ONCE = 1 << 20
"""Values quantised in one go: about what fits a cache, and little beside any matrix worth quantising."""
_LEAST_SCALE = 1e-30


def packing_of(rule: Rule, quantization: QuantizationConfig | None) -> Packing | None:
    """How the tensors of a rule are stored, None for plainly; those that become one parameter are all alike."""
    if quantization is None or rule.part is None:
        return None
    first, *rest = {quantization.of(rule.part, name) for name in rule.sources}
    if rest:
        raise ConfigError(
            f"quantization.exceptions: {next(iter(rule.sources))!r} is stored otherwise than tensors it belongs with; "
            "name all steps with one pattern"
        )
    return first


def packed_names(name: str) -> tuple[str, str, str]:
    """The three tensors that hold the packed linear map `name`: `….weight` or, upstream's other form, `…_weight`."""
    stem = name.removesuffix("weight")
    return name, f"{stem}scales", f"{stem}biases"


def pack(matrix: mx.array, packing: Packing) -> Packed:
    """Quantise float values [..., rows, columns], computed in float32, to 4 or 8 bits.

    Raises ConfigError when groups do not divide the columns, or for other bits.
    """
    *rows, columns = matrix.shape
    if packing.bits not in WRITTEN_BITS:
        raise ConfigError(f"{packing.bits} bits can be read but not written; 4 and 8 can")
    if columns % packing.group_size:
        raise ConfigError(f"groups of {packing.group_size} do not divide rows of {columns} values")
    flat = matrix.reshape(-1, columns)
    step = max(AT_ONCE // columns, 1)
    blocks = [_pack(flat[i : i + step], packing) for i in range(0, flat.shape[0], step)]
    codes, scales, biases = (mx.concatenate(list(arrays)) for arrays in zip(*blocks, strict=True))
    mx.eval(codes, scales, biases)
    return codes.reshape(*rows, -1), scales.reshape(*rows, -1), biases.reshape(*rows, -1)


def _pack(rows: mx.array, packing: Packing) -> Packed:
    groups = rows.astype(mx.float32).reshape(rows.shape[0], -1, packing.group_size)
    most = (1 << packing.bits) - 1
    biases = groups.min(-1, keepdims=True).astype(SCALE_TYPE)
    scales = ((groups.max(-1, keepdims=True) - biases) / most).astype(SCALE_TYPE)
    steps = (groups - biases) / mx.maximum(scales.astype(mx.float32), _LEAST_SCALE)
    codes = mx.clip(mx.round(steps), 0, most).astype(mx.uint8).reshape(rows.shape)
    if packing.bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    packed = codes.view(mx.uint32), scales[..., 0], biases[..., 0]
    mx.eval(packed)
    return packed


def unpacked(packed: Packed, packing: Packing) -> mx.array:
    """The values as float32, in which nothing of float16 or bfloat16 scales is lost."""
    codes, scales, biases = packed
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(codes, scales, biases, group_size=packing.group_size, bits=packing.bits)


def make_packed(model: LanguageModel, packings: Mapping[str, Packing | None]) -> None:
    """Put packed modules, not filled yet, where `packings` (of parameters by name) says so."""
    how = {name.removesuffix(".weight"): packing for name, packing in packings.items() if packing}

    def choose(name: str, _: nn.Module) -> bool | dict[str, int]:
        return {"group_size": how[name].group_size, "bits": how[name].bits} if name in how else False

    nn.quantize(model, class_predicate=choose)
