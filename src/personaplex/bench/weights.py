"""A model to measure with: one on disk, or one of a known size with random weights, made on the device.

Times do not depend on what weights are worth, so nobody needs the real ones to measure. Random ones are drawn where
they are used, as they are stored: packed values are random bits, with scales that give them the size of the others.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_unflatten

from personaplex.bench.demand import packed_bits
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.checkpoint.load import blank_lm, default_dtype, quantised
from personaplex.checkpoint.recipe import quantization
from personaplex.checkpoint.sources import BUNDLED
from personaplex.config import PLAIN_BITS, LMConfig, MimiConfig, ModelConfig, QuantizationConfig
from personaplex.errors import UsageError
from personaplex.model import PersonaPlex, compiled_by_default
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.state import parameters
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import available_bytes, plan_of
from personaplex.text import Tokenizer

RANDOM = "random:"
SIZES = ("7b", "small")
_SPREAD = 0.02
_STEADY = ("norm1.weight", "norm2.weight", "out_norm.weight", "scale1.scale", "scale2.scale")
_AT_ONCE = 1 << 28


def default_model() -> str:
    """What is measured where no model is named: the 7B's size on a GPU, the bundled model's on a CPU."""
    return RANDOM + ("small" if mx.default_device().type == mx.DeviceType.cpu else "7b")


def open_model(name: str, bits: int | None = None, compiled: bool | None = None) -> PersonaPlex:
    """The model `name` with its language model in `bits` (None: as it is stored; 16: plain).

    `random:7b`, `random:small` (the bundled model's size) and `random:FOLDER` (the size in its config.json) have random
    weights. Packed weights stay packed, on a CPU too. Raises UsageError, and what loading raises.
    """
    compiled = compiled_by_default() if compiled is None else compiled
    if name.startswith(RANDOM):
        return random_model(config_of(name.removeprefix(RANDOM)), bits, compiled)
    folder = ModelFolder(resolve(name))
    lm, mimi = folder.load_lm(), folder.load_mimi()
    how = _packing(folder.config.lm, bits) if bits else None
    if how is not None and folder.config.quantization is None:
        lm = quantised(lm, how, unpack=False)
    elif bits and folder.config.quantization is not None and folder.config.quantization != how:
        raise UsageError(f"{name} is packed already: leave out --bits, or name the plain model")
    return PersonaPlex(folder, lm, mimi, folder.load_tokenizer(), compiled=compiled)


def config_of(size: str) -> ModelConfig:
    """The configuration of a random model, by the name after `random:`. Raises UsageError."""
    if size == "7b":
        return ModelConfig()
    if size == "small":
        return ModelFolder(resolve(BUNDLED)).config
    if (Path(size) / "config.json").is_file():
        return ModelConfig.read(Path(size) / "config.json")
    raise UsageError(f"there is no random model {size!r}: expected {', '.join(SIZES)}, or a folder with a config.json")


class _RandomFolder(ModelFolder):
    """A model that is on no disk: a configuration, and no voices."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(Path(__file__).parent)
        self._config = config

    @cached_property
    def config(self) -> ModelConfig:
        return self._config

    @cached_property
    def fingerprint(self) -> str:
        return "random weights"


def _packing(config: LMConfig, bits: int) -> QuantizationConfig | None:
    """As `convert --bits` packs, in groups of 32 where 64 do not divide every matrix."""
    widths = (config.dim, config.hidden, config.depformer_dim, config.depformer_hidden)
    fitting = next((size for size in (64, 32) if all(width % size == 0 for width in widths)), None)
    if fitting is None and bits != PLAIN_BITS:
        raise UsageError(f"groups of 32 do not divide this model's matrices (rows of {widths}): leave it at 16 bits")
    return quantization(str(bits), config, fitting)


def random_model(config: ModelConfig, bits: int | None, compiled: bool) -> PersonaPlex:
    """A model with random weights."""
    config = replace(config, quantization=_packing(config.lm, bits or 16), provenance=None)
    mx.random.seed(0)
    _check_room(config)
    lm = blank_lm(config.lm, quantization=config.quantization, unpack=False)
    lm.update(tree_unflatten(list(_random(lm).items())))
    lm.eval()
    # Nothing is read aloud or shown, so any vocabulary does.
    tokenizer = Tokenizer(ModelFolder(resolve(BUNDLED)).text_file, ModelFolder(resolve(BUNDLED)).config.lm.text_card)
    return PersonaPlex(_RandomFolder(config), lm, random_mimi(config.mimi), tokenizer, compiled=compiled)


def _check_room(config: ModelConfig) -> None:
    """Refuse what would not fit, before it is made. Raises BackendError."""
    blank = blank_lm(config.lm, quantization=config.quantization, unpack=False)
    if (available := available_bytes()) is not None:
        plan_of(blank, Mimi(config.mimi), 1, Limits(pinned_frames=0), default_dtype()).check(available)


def random_mimi(config: MimiConfig) -> Mimi:
    """A codec of the given size with small random weights."""
    mimi = Mimi(config)
    values = {name: 0.05 * mx.random.normal(leaf.shape) for name, leaf in parameters(mimi).items()}
    mx.eval(values)
    mimi.update(tree_unflatten(list(values.items())))
    mimi.quantizer.prepare()
    mimi.eval()
    return mimi


def _random(lm: LanguageModel) -> dict[str, mx.array]:
    values: dict[str, mx.array] = {}
    dtype, bits = default_dtype(), packed_bits(lm)
    for name, leaf in parameters(lm).items():
        owner, kind = name.rsplit(".", 1)
        # Whole numbers from 0 to 2^bits - 1, less their mean, times the scale: as wide as the plain ones.
        scale = _SPREAD * math.sqrt(12) / 2 ** bits.get(owner, 0)
        if leaf.dtype == mx.uint32:
            # Two random numbers a key, as they come.
            keys = mx.random.split(mx.random.key(len(values)), (leaf.size + 1) // 2)
            values[name] = keys.reshape(-1)[: leaf.size].reshape(leaf.shape)
        elif kind == "scales":
            values[name] = mx.full(leaf.shape, scale, dtype)
        elif kind == "biases" and owner in bits:
            values[name] = mx.full(leaf.shape, -scale * (2 ** bits[owner] - 1) / 2, dtype)
        elif name.endswith(_STEADY):
            values[name] = mx.ones(leaf.shape, dtype)
        else:
            values[name] = _normal(leaf.shape, dtype)
        mx.eval(values[name])
    return values


def _normal(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """In blocks of rows: random numbers are drawn in float32."""
    if math.prod(shape) * 4 <= _AT_ONCE or len(shape) < 2:
        return (_SPREAD * mx.random.normal(shape)).astype(dtype)
    half = shape[0] // 2 if shape[0] > 1 else 0
    if not half:
        return _normal(shape[1:], dtype)[None]
    parts = [_normal((half, *shape[1:]), dtype), _normal((shape[0] - half, *shape[1:]), dtype)]
    mx.eval(parts)
    return mx.concatenate(parts)
