"""Mimi, one 80 ms frame at a time.

A frame costs about 217 MMAC to encode and 216 MMAC to decode, and reads 173 MB and 161 MB of float32 weights (the
quantiser's tables included); what must be kept is 80 ms for both. On a CPU most of the time is reading those weights
from memory for two rows (at 10 GB/s: 33 ms) and the dispatch of some 1,700 operations; its activations are fused where
there is a C++ compiler. Weights are random unless a model is named: the time does not depend on their values.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
from mlx.utils import tree_unflatten

from personaplex.bench.report import Row, measure
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import CODEC_FILES, resolve
from personaplex.config import MimiConfig
from personaplex.models.mimi import DecoderState, EncoderState, Mimi
from personaplex.nn.state import parameters
from personaplex.units import FRAME_SAMPLES


def random_mimi(config: MimiConfig) -> Mimi:
    """A codec of the given size with small random weights."""
    mimi = Mimi(config)
    mx.random.seed(0)
    values = {name: 0.05 * mx.random.normal(leaf.shape) for name, leaf in parameters(mimi).items()}
    mimi.update(tree_unflatten(list(values.items())))
    mimi.quantizer.prepare()
    mx.eval(values)
    return mimi


def run(model: str | None, frames: int, compiled: bool | None = None) -> list[Row]:  # noqa: ARG001 - always both
    """Time encoder, quantiser, decoder and round trip over `frames` streamed frames, the last also compiled."""
    mimi = ModelFolder(resolve(model, CODEC_FILES)).load_mimi() if model else random_mimi(MimiConfig())
    pcm = 0.1 * mx.random.normal((1, FRAME_SAMPLES))
    mx.eval(pcm)
    return list(_rows(mimi, pcm, frames))


def _rows(mimi: Mimi, pcm: mx.array, frames: int) -> Iterator[Row]:
    encoder, decoder = mimi.init_encoder(1), mimi.init_decoder(1)
    latent, _ = mimi.latents(pcm, encoder)
    codes = mimi.quantizer.encode(latent).swapaxes(1, 2)
    mx.eval(latent, codes)

    def encode() -> None:
        nonlocal encoder
        out, encoder = mimi.latents(pcm, encoder)
        mx.eval(out, encoder)

    def quantise() -> None:
        mx.eval(mimi.quantizer.encode(latent))

    def decode() -> None:
        nonlocal decoder
        out, decoder = mimi.decode_step(codes, decoder)
        mx.eval(out, decoder)

    def round_trip() -> None:
        nonlocal encoder, decoder
        tokens, encoder = mimi.encode_step(pcm, encoder)
        out, decoder = mimi.decode_step(tokens, decoder)
        mx.eval(out, encoder, decoder)

    @mx.compile
    def fused(sound: mx.array, heard: EncoderState, said: DecoderState) -> tuple[mx.array, EncoderState, DecoderState]:
        tokens, heard = mimi.encode_step(sound, heard)
        out, said = mimi.decode_step(tokens, said)
        return out, heard, said

    def compiled() -> None:
        nonlocal encoder, decoder
        out, encoder, decoder = fused(pcm, encoder, decoder)
        mx.eval(out, encoder, decoder)

    steps = {"encoder": encode, "quantiser": quantise, "decoder": decode, "round trip": round_trip}
    for name, step in (steps | {"round trip, compiled": compiled}).items():
        yield Row(name, measure(step, frames))
