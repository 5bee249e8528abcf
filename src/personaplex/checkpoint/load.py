"""Build a network from a file: checked first, then read tensor by tensor, so that the peak is the weights plus one.

What the rules name is loaded and nothing else: depformer steps and codebooks that are not wanted stay on disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from personaplex.checkpoint.rules import Rule, lm_rules, mimi_rules
from personaplex.checkpoint.tensors import Entry, TensorFile
from personaplex.checkpoint.transformers_mimi import transformers_mimi_rules
from personaplex.config import LMConfig, MimiConfig, QuantizationConfig
from personaplex.errors import CheckpointError, ConfigError
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
    for rule in rules:
        for name, shape in rule.sources.items():
            if quantization is None or rule.part not in quantization.parts:
                expected[name] = shape
                continue
            rows, columns = shape
            if columns % quantization.group_size:
                raise ConfigError(
                    f"quantization.group_size {quantization.group_size} does not divide "
                    f"the {columns} columns of {name!r}"
                )
            weight, scales, biases = packed_names(name)
            groups = (rows, columns // quantization.group_size)
            expected[weight] = Entry("U32", (rows, columns * quantization.bits // 32))
            expected[scales] = expected[biases] = groups
    return expected


def packed_names(name: str) -> tuple[str, str, str]:
    """The three tensors that hold the packed linear map `name`: `….weight` or, upstream's other form, `…_weight`."""
    stem = name.removesuffix("weight")
    return name, f"{stem}scales", f"{stem}biases"


def load_lm(
    path: Path,
    config: LMConfig,
    *,
    depformer_steps: int = 8,
    quantization: QuantizationConfig | None = None,
    dtype: mx.Dtype | None = None,
    unpack: bool | None = None,
) -> LanguageModel:
    """Read a language model.

    `dtype` is that of weights and activations (default: bfloat16 on a GPU, float32 on a CPU). Packed tensors stay
    packed on a GPU and are unpacked on a CPU, which has no fast packed matmul; `unpack` says otherwise.
    Raises CheckpointError or ConfigError naming the tensor or field.
    """
    dtype = dtype or default_dtype()
    if depformer_steps > config.dep_q:
        raise ConfigError(f"{depformer_steps} depformer steps asked for; this model has {config.dep_q}")
    if unpack is None:
        unpack = mx.default_device().type == mx.DeviceType.cpu
    rules = list(lm_rules(config, depformer_steps))
    file = TensorFile(path)
    file.check(expected_tensors(rules, quantization))
    model = LanguageModel(config, depformer_steps)
    parts = set(quantization.parts) if quantization else set()
    if quantization and not unpack:
        packed = {r.target.removesuffix(".weight") for r in rules if r.target and r.part in parts}
        nn.quantize(model, quantization.group_size, quantization.bits, class_predicate=lambda name, _: name in packed)
    values: dict[str, mx.array] = {}
    for rule in rules:
        if rule.target is None:
            continue
        if rule.part not in parts:
            values[rule.target] = _finished(rule.transform([file.take(n) for n in rule.sources]), dtype)
            continue
        assert quantization is not None
        triples = [[file.take(n) for n in packed_names(name)] for name in rule.sources]
        if unpack:
            wide = [_unpacked(w, s, b, quantization) for w, s, b in triples]
            values[rule.target] = _finished(rule.transform(wide), dtype)
            continue
        for target, arrays in zip(packed_names(rule.target), zip(*triples, strict=True), strict=True):
            values[target] = _finished(rule.transform(list(arrays)), dtype)
    return _filled(model, values)


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


def _unpacked(weight: mx.array, scales: mx.array, biases: mx.array, how: QuantizationConfig) -> mx.array:
    """Scales may be float16 or bfloat16; unpacked in float32 nothing is lost."""
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(weight, scales, biases, group_size=how.group_size, bits=how.bits)


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
