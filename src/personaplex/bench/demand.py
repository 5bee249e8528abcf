"""What a frame needs at least: bytes that must be read, and operations that must be done, counted from the network."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from personaplex.config import LMConfig, MimiConfig
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.state import n_bytes, parameters
from personaplex.units import FRAME_SAMPLES

_PACKED_BITS = 32


class Demand(NamedTuple):
    """Bytes moved and operations done (a multiplication and an addition are two)."""

    n_bytes: float
    n_operations: float

    def __add__(self, other: object) -> Demand:
        assert isinstance(other, Demand)
        return Demand(self.n_bytes + other.n_bytes, self.n_operations + other.n_operations)


def of_step(lm: LanguageModel, filled: list[int], kv_bits: int = 16) -> Demand:
    """One step of slots that see `filled` keys each: every weight once, tables by the row, each slot's keys and values.

    What is written (one key and value a layer) and the activations between are left out.
    """
    n_slots = len(filled)
    matrices = _matrices(lm, "")
    rings = of_rings(lm.config, sum(filled), _row_bytes(lm, kv_bits))
    return Demand(matrices.n_bytes + rings.n_bytes, n_slots * matrices.n_operations + rings.n_operations)


def of_speech(lm: LanguageModel) -> Demand:
    """One draw of text and codes without a step of the temporal transformer: text head and depformer."""
    return _matrices(lm, "text_head") + _matrices(lm, "depformer")


def of_prompt(lm: LanguageModel, n_columns: int, kv_bits: int = 16) -> Demand:
    """Reading a prompt in one pass: the temporal weights once, for all columns; each sees those before it."""
    temporal = _matrices(lm, "temporal")
    pairs = n_columns * (n_columns + 1) // 2
    written = of_rings(lm.config, n_columns, _row_bytes(lm, kv_bits)).n_bytes
    return Demand(
        temporal.n_bytes + written,
        n_columns * temporal.n_operations + 4 * lm.config.num_layers * lm.config.dim * pairs,
    )


def of_rings(config: LMConfig, n_keys: int, row_bytes: int) -> Demand:
    """Attention of one query to `n_keys` in every layer."""
    return Demand(n_keys * row_bytes, 4 * config.num_layers * config.dim * n_keys)


def _row_bytes(lm: LanguageModel, kv_bits: int) -> int:
    """One token's keys and values in all layers; 8 bits have a float32 unit a head and row."""
    config = lm.config
    one = config.dim + 4 * config.num_heads if kv_bits == 8 else config.dim * lm.dtype.size
    return 2 * config.num_layers * one


def of_encoder(mimi: Mimi, config: MimiConfig, n_slots: int = 1) -> Demand:
    """One frame's encoding: convolutions at their rates, the transformer at two latents, the search of codebooks."""
    return _of_codec(
        [mimi.encoder, mimi.encoder_transformer, mimi.downsample], mimi, config, config.seanet.ratios[::-1], n_slots
    )


def of_decoder(mimi: Mimi, config: MimiConfig, n_slots: int = 1) -> Demand:
    """One frame's decoding; of the codebooks, only the rows looked up."""
    return _of_codec([mimi.upsample, mimi.decoder_transformer, mimi.decoder], mimi, config, None, n_slots)


def _of_codec(
    parts: list[nn.Module], mimi: Mimi, config: MimiConfig, encoding: tuple[int, ...] | None, n_slots: int
) -> Demand:
    n_weights, operations = sum(n_bytes(parameters(part)) for part in parts), 0.0
    latents = config.latents_per_frame
    chain = mimi.encoder if encoding else mimi.decoder
    length = FRAME_SAMPLES if encoding else latents
    layers = [chain.first, *(layer for stage in chain.stages for layer in stage), chain.last]
    for layer in layers:
        # A strided convolution works at its output's rate, a transposed one at its input's: the lower in both cases.
        stride = getattr(layer, "stride", 1)
        at = length // stride if encoding else length
        operations += 2 * at * _n_values(layer)
        length = length // stride if encoding else length * stride
    stack = mimi.encoder_transformer if encoding else mimi.decoder_transformer
    attention = 4 * config.transformer.num_layers * config.transformer.d_model * config.transformer.context
    operations += latents * (2 * _n_values(stack) + attention)
    rings = 2 * 4 * config.transformer.num_layers * config.transformer.d_model * config.transformer.context
    if encoding:
        operations += 2 * (_n_values(mimi.downsample) + _n_values(mimi.quantizer))
        n_weights += n_bytes(parameters(mimi.quantizer))
    return Demand(n_weights + n_slots * rings, n_slots * operations)


def _n_values(module: nn.Module) -> int:
    return sum(array.size for array in parameters(module).values() if array.ndim > 1)


def _matrices(lm: LanguageModel, within: str) -> Demand:
    """Weights of the maps in a part: bytes as they are stored, two operations a value; tables are not counted."""
    found = {name: array for name, array in parameters(lm).items() if name.startswith(within) and "_emb." not in name}
    bits = packed_bits(lm)
    values = sum(
        array.size * _PACKED_BITS // bits[name.removesuffix(".weight")] if array.dtype == mx.uint32 else array.size
        for name, array in found.items()
        if array.ndim > 1 and not name.endswith((".scales", ".biases"))
    )
    return Demand(sum(array.nbytes for array in found.values()), 2 * values)


def packed_bits(lm: LanguageModel) -> dict[str, int]:
    """Bits a value of the modules that are packed, by name."""
    modules = lm.named_modules()  # type: ignore[no-untyped-call]
    return {name: module.bits for name, module in modules if hasattr(module, "bits")}
