"""Mimi as Hugging Face's `transformers` stores it (`MimiModel`, the repository kyutai/mimi).

The numbers are those of the Moshi layout under other names, but for two things: queries, keys and values are apart, and
the rows of queries and keys are in another order, because rotary pairs are (i, i + half) there and (2i, 2i + 1) here.
A convolution may be stored with its weight norm: a direction and a length for each index of axis 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx

from personaplex.checkpoint.rules import Rule, Shape, Transform, mimi_rules
from personaplex.config import CodecTransformerConfig, MimiConfig, QuantizerConfig, SeanetConfig
from personaplex.errors import ConfigError
from personaplex.units import FRAME_RATE, N_CODEBOOKS, SAMPLE_RATE

_NAMES = (
    ("encoder.model.", "encoder.layers."),
    ("decoder.model.", "decoder.layers."),
    ("_transformer.transformer.", "_transformer."),
    ("conv.conv.conv.", "conv."),
    ("convtr.convtr.convtr.", "conv."),
    ("convtr.convtr.", "conv."),
    ("conv.conv.", "conv."),
    ("self_attn.out_proj", "self_attn.o_proj"),
    ("linear1", "mlp.fc1"),
    ("linear2", "mlp.fc2"),
    ("norm1", "input_layernorm"),
    ("norm2", "post_attention_layernorm"),
    ("layer_scale_1", "self_attn_layer_scale"),
    ("layer_scale_2", "mlp_layer_scale"),
    ("rvq_first.vq.", "rvq_first."),
    ("rvq_rest.vq.", "rvq_rest."),
    ("rvq_first", "semantic_residual_vector_quantizer"),
    ("rvq_rest", "acoustic_residual_vector_quantizer"),
    ("._codebook.", ".codebook."),
    ("._initialized", ".initialized"),
    ("embedding_sum", "embed_sum"),
)
"""Parts of a name in the Moshi layout, and what `MimiModel` calls them."""

_WEIGHT_NORMS = (("_g", "_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""PyTorch's two ways to store a weight norm's length and direction, the older one first."""

_SAID_ONCE = {
    "sampling_rate": SAMPLE_RATE,
    "frame_rate": FRAME_RATE,
    "audio_channels": 1,
    "attention_bias": False,
    "hidden_act": "gelu",
    "normalize": False,
    "norm_eps": 1e-5,
    "num_residual_layers": 1,
    "num_semantic_quantizers": 1,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_causal_conv": True,
    "use_conv_shortcut": False,
}
"""Fields of `MimiConfig` of which we implement one value."""


def read_mimi_config(data: dict[str, Any], where: str) -> MimiConfig:
    """The `config.json` of a `MimiModel`; what it does not say has transformers' default, which is Mimi's.

    transformers writes much else, which changes nothing that is computed here and is not read. Raises ConfigError
    naming the field.
    """
    for name, only in _SAID_ONCE.items():
        # The first versions wrote the frame rate down, later ones null.
        if data.get(name) not in (None, only):
            raise ConfigError(f"{where}.{name} is {data[name]!r}; only {only!r} is supported")

    def number(name: str, default: int) -> int:
        value = data.get(name, default)
        if type(value) is not int or not 1 <= value < 1 << 20:
            raise ConfigError(f"{where}.{name}: expected a whole number from 1 on, found {value!r}")
        return value

    ratios = data.get("upsampling_ratios", [8, 6, 5, 4])
    if not isinstance(ratios, list) or not ratios or not all(type(ratio) is int for ratio in ratios):
        raise ConfigError(f"{where}.upsampling_ratios: expected a list of whole numbers, found {ratios!r}")
    rope = data.get("rope_parameters") or {}
    period = data.get("rope_theta", rope.get("rope_theta", 10_000.0) if isinstance(rope, dict) else None)
    if not isinstance(period, int | float) or isinstance(period, bool):
        raise ConfigError(f"{where}.rope_theta: expected a number, found {period!r}")
    width, heads = number("hidden_size", 512), number("num_attention_heads", 8)
    head_dim = data.get("head_dim") or width // heads
    codebook = number("codebook_dim", 256)
    if (number("num_key_value_heads", heads), head_dim * heads) != (heads, width):
        raise ConfigError(f"{where}: {heads} heads of {head_dim} and as many keys must make up hidden_size, {width}")
    if number("vector_quantization_hidden_dimension", codebook) != codebook:
        raise ConfigError(f"{where}: vector_quantization_hidden_dimension must equal codebook_dim, {codebook}")
    if number("upsample_groups", width) != width:
        raise ConfigError(f"{where}.upsample_groups is {data['upsample_groups']}; it must equal hidden_size, {width}")
    try:
        return MimiConfig(
            seanet=SeanetConfig(
                dimension=width,
                n_filters=number("num_filters", 64),
                kernel_size=number("kernel_size", 7),
                residual_kernel_size=number("residual_kernel_size", 3),
                last_kernel_size=number("last_kernel_size", 3),
                compress=number("compress", 2),
                ratios=tuple(ratios),
                dilation_base=number("dilation_growth_rate", 2),
            ),
            transformer=CodecTransformerConfig(
                d_model=width,
                num_heads=heads,
                num_layers=number("num_hidden_layers", 8),
                context=number("sliding_window", 250),
                max_period=float(period),
                dim_feedforward=number("intermediate_size", 2048),
                input_dimension=width,
                output_dimensions=(width,),
            ),
            quantizer=QuantizerConfig(
                codebook, number("num_quantizers", 32), number("codebook_size", 2048), width, width
            ),
            num_codebooks=N_CODEBOOKS,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def transformers_mimi_rules(config: MimiConfig, stored: Collection[str]) -> Iterator[Rule]:
    """Every tensor of a `MimiModel`'s file, as `mimi_rules`; the names `stored` in it tell of weight norms."""
    for rule in mimi_rules(config):
        if any(name.endswith("in_proj_weight") for name in rule.sources):
            yield _attention(rule, config.transformer.num_heads)
        else:
            renamed = replace(rule, sources={_renamed(name): shape for name, shape in rule.sources.items()})
            yield _plain(renamed, stored)


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def _attention(rule: Rule, heads: int) -> Rule:
    """One packed projection from three, of which the first two have their rotary pairs apart."""
    ((name, (rows, columns)),) = rule.sources.items()
    stem = _renamed(name).removesuffix("in_proj_weight")

    def interleaved(array: mx.array) -> mx.array:
        return array.reshape(heads, 2, -1, columns).swapaxes(1, 2).reshape(-1, columns)

    def joined(arrays: list[mx.array]) -> mx.array:
        q, k, v = arrays
        return mx.concatenate([interleaved(q), interleaved(k), v])

    return Rule(rule.target, {f"{stem}{x}_proj.weight": (rows // 3, columns) for x in "qkv"}, joined)


def _plain(rule: Rule, stored: Collection[str]) -> Rule:
    """`rule`, or where its one tensor is stored as length and direction, the rule that multiplies them first."""
    if len(rule.sources) != 1:
        return rule
    ((name, shape),) = rule.sources.items()
    for length, direction in _WEIGHT_NORMS:
        stem = name if length == "_g" else name.removesuffix("weight")
        if name.endswith("weight") and f"{stem}{length}" in stored:
            sources: dict[str, Shape] = {
                f"{stem}{length}": (shape[0], *(1,) * (len(shape) - 1)),
                f"{stem}{direction}": shape,
            }
            return replace(rule, sources=sources, transform=_normed(rule.transform))
    return rule


def _normed(transform: Transform) -> Callable[[list[mx.array]], mx.array]:
    def multiplied(arrays: list[mx.array]) -> mx.array:
        length, direction = arrays
        axes = list(range(1, direction.ndim))
        return transform([direction * (length / mx.sqrt(mx.square(direction).sum(axis=axes, keepdims=True)))])

    return multiplied
