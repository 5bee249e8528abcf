"""First weights: our modules begin at zeros, because a checkpoint fills them; from zeros nothing can be learned.

Every linear map and convolution gets variance 1 / inputs, every residual branch's last map less with the depth of its
stack, every table little; norms and layer scales stay as they are made. The same seed gives the same weights.
"""

from __future__ import annotations

import math
from typing import TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from personaplex.nn.conv import CausalConv1d, CausalConvTranspose1d, DepthwiseUpsample
from personaplex.nn.state import parameters
from personaplex.nn.tables import PerStepLinear, TokenTables

M = TypeVar("M", bound=nn.Module)

TABLE_SCALE = 0.02
"""Standard deviation of embedding rows: seventeen of them are summed."""

RESIDUAL_ENDS = ("out_proj", "linear_out", "linear2")
"""Maps that end a residual branch."""

QUIET = {"decoder.last": 0.1}
"""The codec's last convolution: a first waveform as loud as speech, neither saturating its logarithm nor shouting."""


def initialise(model: M, seed: int) -> M:
    """Give `model` (a LanguageModel, a Mimi, or any module made of ours) its first weights, in place."""
    key = mx.random.key(seed)
    values: list[tuple[str, mx.array]] = []
    modules: list[tuple[str, nn.Module]] = model.named_modules()  # type: ignore[no-untyped-call]
    names = [name for name, _ in modules]
    for name, module in modules:
        if not isinstance(getattr(module, "weight", None), mx.array) or isinstance(module, nn.RMSNorm | nn.LayerNorm):
            continue
        key, own = mx.random.split(key)
        values.append((f"{name}.weight" if name else "weight", _first(name, module, own, _depth(names, name))))
        if "bias" in module:
            values.append((f"{name}.bias" if name else "bias", mx.zeros_like(module.bias)))
    model.update(tree_unflatten(values))
    mx.eval(parameters(model))
    return model


def _depth(names: list[str], name: str) -> int:
    """Layers of the stack that the module `name` is in; 1 outside of one."""
    stem, inside, _ = name.partition(".layers.")
    stack = stem + inside
    return len({other[len(stack) :].split(".")[0] for other in names if other.startswith(stack)}) if inside else 1


def _first(name: str, module: nn.Module, key: mx.array, depth: int) -> mx.array:
    shape = module.weight.shape
    if isinstance(module, DepthwiseUpsample):
        return _interpolation(module.stride, shape[2])
    if isinstance(module, TokenTables):
        return mx.random.normal(shape, key=key) * TABLE_SCALE
    if isinstance(module, CausalConvTranspose1d):
        # Each output sample is reached by two of the 2 x stride taps.
        return mx.random.normal(shape, key=key) / math.sqrt(2 * shape[2])
    if isinstance(module, CausalConv1d | nn.Conv2d):
        return mx.random.normal(shape, key=key) * (QUIET.get(name, 1.0) / math.sqrt(math.prod(shape[1:])))
    if isinstance(module, nn.Linear | PerStepLinear):
        scale = 1 / math.sqrt(shape[-1])
        if name.rsplit(".", 1)[-1] in RESIDUAL_ENDS and depth > 1:
            scale /= math.sqrt(2 * depth)
        return mx.random.normal(shape, key=key) * scale
    raise TypeError(f"no first weights are known for {type(module).__name__} {name!r}")


def _interpolation(stride: int, channels: int) -> mx.array:
    """Linear interpolation from the last input to this one: [2 (this, last), stride, channels]."""
    toward = (mx.arange(stride) + 1.0) / stride
    return mx.broadcast_to(mx.stack([toward, 1 - toward])[:, :, None], (2, stride, channels))
