"""The reference's tensor names, and what each becomes in our modules.

A rule says which tensors of the file make one parameter, and how. Everything else follows from the list of rules:
the strict check of a file (all names and shapes), the lazy load (only what is needed), the reading of packed
tensors. Transforms act on whole tensors or on leading axes alone, so they serve packed weights as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from personaplex.config import CodecTransformerConfig, LMConfig, MimiConfig

Shape = tuple[int, ...]
Transform = Callable[[list[mx.array]], mx.array]
Part = Literal["temporal", "depformer", "heads", "embeddings"]


def only(arrays: list[mx.array]) -> mx.array:
    """The single tensor of a rule, as it is."""
    return arrays[0]


def flat(arrays: list[mx.array]) -> mx.array:
    """Norm gains stored as (1, 1, dim)."""
    return arrays[0].reshape(-1)


@dataclass(frozen=True)
class Rule:
    """`sources` (names and shapes) make the parameter `target`; without a target they are known but not loaded.

    `part` is set for linear maps and tables, which a checkpoint may store packed.
    """

    target: str | None
    sources: Mapping[str, Shape]
    transform: Transform = only
    part: Part | None = None


def lm_rules(config: LMConfig, depformer_steps: int) -> Iterator[Rule]:
    """Every tensor of a language-model file, of which `depformer_steps` steps are wanted."""
    d, hidden = config.dim, config.hidden
    yield Rule("text_emb.weight", {"text_emb.weight": (config.text_card + 1, d)}, mx.stack, "embeddings")
    tables = {f"emb.{i}.weight": (config.card + 1, d) for i in range(config.n_q)}
    yield Rule("audio_emb.weight", tables, mx.stack, "embeddings")
    yield Rule("text_head.weight", {"text_linear.weight": (config.text_card, d)}, only, "heads")
    yield Rule("out_norm.weight", {"out_norm.alpha": (1, 1, d)}, flat)
    for i in range(config.num_layers):
        ours, theirs = f"temporal.layers.{i}", f"transformer.layers.{i}"
        yield from (Rule(f"{ours}.norm{n}.weight", {f"{theirs}.norm{n}.alpha": (1, 1, d)}, flat) for n in (1, 2))
        for target, source, shape in (
            ("attention.in_proj", "self_attn.in_proj_weight", (3 * d, d)),
            ("attention.out_proj", "self_attn.out_proj.weight", (d, d)),
            ("feedforward.linear_in", "gating.linear_in.weight", (2 * hidden, d)),
            ("feedforward.linear_out", "gating.linear_out.weight", (d, hidden)),
        ):
            yield Rule(f"{ours}.{target}.weight", {f"{theirs}.{source}": shape}, only, "temporal")
    yield from _depformer_rules(config, depformer_steps)


def _depformer_rules(config: LMConfig, steps: int) -> Iterator[Rule]:
    d, hidden, stored = config.depformer_dim, config.depformer_hidden, config.dep_q

    def blocks(arrays: list[mx.array]) -> mx.array:
        return arrays[0].reshape(stored, -1, arrays[0].shape[-1])[:steps]

    def per_step(target: str, names: list[str], shape: Shape, wanted: int, part: Part) -> Iterator[Rule]:
        yield Rule(target, dict.fromkeys(names[:wanted], shape), mx.stack, part)
        if names[wanted:]:
            yield Rule(None, dict.fromkeys(names[wanted:], shape), part=part)

    text = {"depformer_text_emb.weight": (config.text_card + 1, d)}
    yield Rule("depformer.text_emb.weight", text, mx.stack, "embeddings")
    tables = [f"depformer_emb.{s}.weight" for s in range(stored - 1)]
    yield from per_step("depformer.audio_emb.weight", tables, (config.card + 1, d), steps - 1, "embeddings")
    inputs = [f"depformer_in.{s}.weight" for s in range(stored)]
    yield from per_step("depformer.input_proj.weight", inputs, (d, config.dim), steps, "depformer")
    heads = [f"linears.{s}.weight" for s in range(stored)]
    yield from per_step("depformer.heads.weight", heads, (config.card, d), steps, "heads")
    for i in range(config.depformer_num_layers):
        name = f"depformer.layers.{i}"
        for n in (1, 2):
            yield Rule(f"{name}.norm{n}.weight", {f"{name}.norm{n}.alpha": (1, 1, d)}, flat)
        stacked = {f"{name}.self_attn.in_proj_weight": (stored * 3 * d, d)}
        yield Rule(f"{name}.attention.in_proj.weight", stacked, blocks, "depformer")
        stacked = {f"{name}.self_attn.out_proj.weight": (stored * d, d)}
        yield Rule(f"{name}.attention.out_proj.weight", stacked, blocks, "depformer")
        for linear, shape in (("linear_in", (2 * hidden, d)), ("linear_out", (d, hidden))):
            names = [f"{name}.gating.{s}.{linear}.weight" for s in range(stored)]
            yield from per_step(f"{name}.feedforward.{linear}.weight", names, shape, steps, "depformer")


def _conv(arrays: list[mx.array]) -> mx.array:
    """(out, in, kernel) -> (out, kernel, in)."""
    return arrays[0].swapaxes(1, 2)


def _conv_transpose(arrays: list[mx.array]) -> mx.array:
    """(in, out, kernel) -> (kernel, out, in)."""
    return arrays[0].T


def _pointwise(arrays: list[mx.array]) -> mx.array:
    """A 1x1 convolution (out, in, 1) -> a linear map (out, in)."""
    return arrays[0][..., 0]


def _depthwise(arrays: list[mx.array]) -> mx.array:
    """(channels, 1, 2 x stride) -> (2, stride, channels)."""
    channels, _, kernel = arrays[0].shape
    return arrays[0].T.reshape(2, kernel // 2, channels)


def _centroids(arrays: list[mx.array]) -> mx.array:
    """Running sums and usage counts, codebook by codebook, give the tables (core_vq.py)."""
    pairs = zip(arrays[0::2], arrays[1::2], strict=True)
    return mx.stack([total / mx.maximum(usage, 1e-5)[:, None] for total, usage in pairs])


def mimi_rules(config: MimiConfig) -> Iterator[Rule]:
    """Every tensor of a Mimi file, of which `num_codebooks` codebooks are wanted."""
    seanet = config.seanet
    dims, width = seanet.dimension, seanet.n_filters
    last = 3 * len(seanet.ratios) + 2

    def conv(ours: str, theirs: str, shape: Shape) -> Iterator[Rule]:
        weight = {f"{theirs}.conv.conv.weight": shape}
        yield Rule(f"{ours}.weight", weight, _pointwise if shape[2] == 1 else _conv)
        yield Rule(f"{ours}.bias", {f"{theirs}.conv.conv.bias": shape[:1]})

    def residual(ours: str, theirs: str, channels: int) -> Iterator[Rule]:
        inner = channels // seanet.compress
        yield from conv(f"{ours}.conv", f"{theirs}.block.1", (inner, channels, seanet.residual_kernel_size))
        yield from conv(f"{ours}.proj", f"{theirs}.block.3", (channels, inner, 1))

    # The reference numbers its layers in one list, activations included: a residual unit, an ELU, a resampling.
    yield from conv("encoder.first", "encoder.model.0", (width, 1, seanet.kernel_size))
    for i, ratio in enumerate(reversed(seanet.ratios)):
        yield from residual(f"encoder.stages.{i}.0", f"encoder.model.{3 * i + 1}", width)
        yield from conv(f"encoder.stages.{i}.1", f"encoder.model.{3 * i + 3}", (2 * width, width, 2 * ratio))
        width *= 2
    yield from conv("encoder.last", f"encoder.model.{last}", (dims, width, seanet.last_kernel_size))

    yield from conv("decoder.first", "decoder.model.0", (width, dims, seanet.kernel_size))
    for i, ratio in enumerate(seanet.ratios):
        up, theirs = f"decoder.stages.{i}.0", f"decoder.model.{3 * i + 2}.convtr.convtr"
        yield Rule(f"{up}.weight", {f"{theirs}.weight": (width, width // 2, 2 * ratio)}, _conv_transpose)
        yield Rule(f"{up}.bias", {f"{theirs}.bias": (width // 2,)})
        width //= 2
        yield from residual(f"decoder.stages.{i}.1", f"decoder.model.{3 * i + 3}", width)
    yield from conv("decoder.last", f"decoder.model.{last}", (1, width, seanet.last_kernel_size))

    for side in ("encoder_transformer", "decoder_transformer"):
        yield from _codec_transformer_rules(side, config.transformer)
    kernel = 2 * config.latents_per_frame
    yield Rule("downsample.conv.weight", {"downsample.conv.conv.conv.weight": (dims, dims, kernel)}, _conv)
    yield Rule("upsample.weight", {"upsample.convtr.convtr.convtr.weight": (dims, 1, kernel)}, _depthwise)
    yield from _quantizer_rules(config)


def _codec_transformer_rules(side: str, config: CodecTransformerConfig) -> Iterator[Rule]:
    d, hidden = config.d_model, config.dim_feedforward
    for i in range(config.num_layers):
        ours, theirs = f"{side}.layers.{i}", f"{side}.transformer.layers.{i}"
        for target, source, shape in (
            ("attention.in_proj.weight", "self_attn.in_proj_weight", (3 * d, d)),
            ("attention.out_proj.weight", "self_attn.out_proj.weight", (d, d)),
            ("feedforward.linear1.weight", "linear1.weight", (hidden, d)),
            ("feedforward.linear2.weight", "linear2.weight", (d, hidden)),
            ("norm1.weight", "norm1.weight", (d,)),
            ("norm1.bias", "norm1.bias", (d,)),
            ("norm2.weight", "norm2.weight", (d,)),
            ("norm2.bias", "norm2.bias", (d,)),
            ("scale1.scale", "layer_scale_1.scale", (d,)),
            ("scale2.scale", "layer_scale_2.scale", (d,)),
        ):
            yield Rule(f"{ours}.{target}", {f"{theirs}.{source}": shape})


def _quantizer_rules(config: MimiConfig) -> Iterator[Rule]:
    quantizer = config.quantizer
    for ours, theirs, stored, wanted in (
        ("semantic", "rvq_first", 1, 1),
        ("acoustic", "rvq_rest", quantizer.n_q - 1, config.num_codebooks - 1),
    ):
        stem = f"quantizer.{theirs}"
        shape = (quantizer.dimension, quantizer.input_dimension, 1)
        yield Rule(f"quantizer.{ours}.input_proj.weight", {f"{stem}.input_proj.weight": shape}, _pointwise)
        shape = (quantizer.output_dimension, quantizer.dimension, 1)
        yield Rule(f"quantizer.{ours}.output_proj.weight", {f"{stem}.output_proj.weight": shape}, _pointwise)
        tables: dict[str, Shape] = {}
        unused: dict[str, Shape] = {}
        for i in range(stored):
            book = f"{stem}.vq.layers.{i}._codebook"
            into = tables if i < wanted else unused
            into[f"{book}.embedding_sum"] = (quantizer.bins, quantizer.dimension)
            into[f"{book}.cluster_usage"] = (quantizer.bins,)
            unused[f"{book}._initialized"] = (1,)
        yield Rule(f"quantizer.{ours}.centroids", tables, _centroids)
        yield Rule(None, unused)
