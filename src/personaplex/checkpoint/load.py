"""Build a network from a file: checked first, then read tensor by tensor, so that the peak is the weights plus one.

What the rules name is loaded and nothing else: depformer steps and codebooks that are not wanted stay on disk.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from personaplex.checkpoint.packing import Packed, make_packed, pack, packed_names, packing_of, unpacked
from personaplex.checkpoint.rules import Rule, lm_rules, mimi_rules
from personaplex.checkpoint.tensors import Entry, TensorFile
from personaplex.checkpoint.transformers_mimi import transformers_mimi_rules
from personaplex.config import GROUP_SIZES, LMConfig, MimiConfig, Packing, QuantizationConfig
from personaplex.errors import CheckpointError, ConfigError, UsageError
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.state import parameters

Expected = dict[str, Entry | tuple[int, ...]]
M = TypeVar("M", bound=nn.Module)


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU; float32 on a CPU, where MLX has no fast path for anything else."""
    return mx.float32 if mx.default_device().type == mx.DeviceType.cpu else mx.bfloat16


def expected_tensors(rules: Iterable[Rule], quantization: QuantizationConfig | None = None) -> Expected:
    """Every name a file must hold, with its shape (and type, where tensors are stored packed)."""
    expected: Expected = {}
    rules = list(rules)
    matrices = [name for rule in rules if rule.part for name in rule.sources]
    for exception in quantization.exceptions if quantization else ():
        if not fnmatch.filter(matrices, exception.tensors):
            raise ConfigError(f"quantization.exceptions: no matrix has a name like {exception.tensors!r}")
    for rule in rules:
        packing = packing_of(rule, quantization)
        for name, shape in rule.sources.items():
            if packing is None:
                expected[name] = shape
                continue
            rows, columns = shape
            if columns % packing.group_size:
                fitting = " and ".join(str(size) for size in GROUP_SIZES if columns % size == 0)
                raise ConfigError(
                    f"quantization: groups of {packing.group_size} do not divide the {columns} columns of {name!r}; "
                    + (
                        f"groups of {fitting} do (convert: --group-size)"
                        if fitting
                        else f"none do: leave {rule.part} at 16 bits"
                    )
                )
            weight, scales, biases = packed_names(name)
            expected[weight] = Entry("U32", (rows, columns * packing.bits // 32))
            expected[scales] = expected[biases] = (rows, columns // packing.group_size)
    return expected


def blank_lm(
    config: LMConfig,
    depformer_steps: int = 8,
    quantization: QuantizationConfig | None = None,
    *,
    unpack: bool | None = None,
) -> LanguageModel:
    """The network that `load_lm` fills: its arrays have shapes, and take no memory until they are evaluated."""
    model = LanguageModel(config, depformer_steps)
    if not (_unpacks() if unpack is None else unpack):
        make_packed(model, _packings(config, depformer_steps, quantization))
    return model


def load_lm(
    path: Path | TensorFile,
    config: LMConfig,
    *,
    depformer_steps: int = 8,
    quantization: QuantizationConfig | None = None,
    dtype: mx.Dtype | None = None,
    unpack: bool | None = None,
) -> LanguageModel:
    """Read a language model from a file, or several as one.

    `dtype` is that of weights and activations (default: bfloat16 on a GPU, float32 on a CPU). Packed tensors stay
    packed on a GPU and are unpacked on a CPU, which has no fast packed matmul; `unpack` says otherwise.
    Raises CheckpointError or ConfigError naming the tensor or field.
    """
    dtype = dtype or default_dtype()
    if depformer_steps > config.dep_q:
        raise ConfigError(f"{depformer_steps} depformer steps asked for; this model has {config.dep_q}")
    unpack = _unpacks() if unpack is None else unpack
    rules = list(lm_rules(config, depformer_steps))
    file = path if isinstance(path, TensorFile) else TensorFile(path)
    file.check(expected_tensors(rules, quantization))
    packings = _packings(config, depformer_steps, quantization)
    values: dict[str, mx.array] = {}
    for rule in rules:
        if rule.target is None:
            continue
        packing = packings[rule.target]
        if packing is None:
            values[rule.target] = _finished(rule.transform([file.take(n) for n in rule.sources]), dtype)
            continue
        packed = [[file.take(n) for n in packed_names(name)] for name in rule.sources]
        codes, scales, biases = (rule.transform(list(arrays)) for arrays in zip(*packed, strict=True))
        values |= _stored(rule.target, (codes, scales, biases), packing, dtype, unpack=unpack)
    return _filled(blank_lm(config, depformer_steps, quantization, unpack=unpack), values)


def quantised(model: LanguageModel, quantization: QuantizationConfig, *, unpack: bool | None = None) -> LanguageModel:
    """Another model: `model` as it would be if it were converted and loaded again, made in memory.

    What stays plain is shared with `model`. `unpack` as in `load_lm`.
    Raises ConfigError when the groups do not fit, UsageError when `model` is packed itself.
    """
    if any(array.dtype == mx.uint32 for array in parameters(model).values()):
        raise UsageError("this model is packed already; load one with plain weights, or unpack it (`unpack=True`)")
    unpack = _unpacks() if unpack is None else unpack
    config, steps = model.config, model.depformer.n_steps
    packings = _packings(config, steps, quantization)
    values: dict[str, mx.array] = {}
    for name, value in parameters(model).items():
        packing = packings.get(name)
        values |= _stored(name, pack(value, packing), packing, model.dtype, unpack=unpack) if packing else {name: value}
    return _filled(blank_lm(config, steps, quantization, unpack=unpack), values)


def load_mimi(path: Path, config: MimiConfig, *, transformers_layout: bool = False) -> Mimi:
    """Read a codec, always in float32, from the Moshi layout or that of Hugging Face's `MimiModel`.

    Raises CheckpointError naming the tensor.
    """
    file = TensorFile(path)
    rules = list(transformers_mimi_rules(config, file.entries) if transformers_layout else mimi_rules(config))
    file.check(expected_tensors(rules))
    model = Mimi(config)
    values = {
        rule.target: _finished(rule.transform([file.take(n).astype(mx.float32) for n in rule.sources]), mx.float32)
        for rule in rules
        if rule.target
    }
    _filled(model, values)
    model.quantizer.prepare()
    return model


def _packings(
    config: LMConfig, depformer_steps: int, quantization: QuantizationConfig | None
) -> dict[str, Packing | None]:
    """How each parameter is stored, by its name in our modules."""
    rules = lm_rules(config, depformer_steps)
    return {rule.target: packing_of(rule, quantization) for rule in rules if rule.target}


def _unpacks() -> bool:
    """Whether packed tensors are unpacked at load: a CPU has no fast packed matmul."""
    return mx.default_device().type == mx.DeviceType.cpu


def _stored(target: str, packed: Packed, packing: Packing, dtype: mx.Dtype, *, unpack: bool) -> dict[str, mx.array]:
    """The parameters that hold a packed `target`: itself, unpacked, or three."""
    if unpack:
        return {target: _finished(unpacked(packed, packing), dtype)}
    return {name: _finished(array, dtype) for name, array in zip(packed_names(target), packed, strict=True)}


def _finished(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """Cast, copy and evaluate now, so that the source tensor is let go before the next one is read."""
    if array.dtype != mx.uint32:
        array = array.astype(dtype)
    array = mx.contiguous(array)
    mx.eval(array)
    return array


def _filled(model: M, values: dict[str, mx.array]) -> M:
    """`model` with every parameter set; the rules and the module tree must agree."""
    wanted = {name: array.shape for name, array in parameters(model).items()}
    given = {name: array.shape for name, array in values.items()}
    if wanted != given:
        odd = sorted(set(wanted.items()) ^ set(given.items()))
        raise CheckpointError(f"the loading rules and the network disagree about {odd[0][0]!r}; please report this")
    model.update(tree_unflatten(list(values.items())))
    model.eval()
    return model
