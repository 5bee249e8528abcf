"""Mimi, one 80 ms frame at a time.

A frame costs about 217 MMAC to encode and 216 MMAC to decode, and reads 173 MB and 161 MB of float32 weights (the
quantiser's tables included); what must be kept is 80 ms for both. On a CPU most of the time is reading those weights
from memory for two rows (at 10 GB/s: 33 ms) and the dispatch of some 1,700 operations; its activations are fused where
there is a C++ compiler. On a GPU it is the number of kernels. Weights are random unless a model is named: the time does
not depend on their values. `achieved` is the floor, bytes over this machine's measured bandwidth or operations over its
rate, against the median.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from personaplex.bench.demand import of_decoder, of_encoder
from personaplex.bench.graph import n_kernels
from personaplex.bench.report import Row, measure
from personaplex.bench.roof import roof
from personaplex.bench.step import against
from personaplex.bench.wanted import Wanted, kernels
from personaplex.bench.weights import RANDOM, config_of, random_mimi
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import CODEC_FILES, resolve
from personaplex.config import MimiConfig
from personaplex.models.mimi import DecoderState, EncoderState, Mimi
from personaplex.units import FRAME_SAMPLES

GPU_FRAMES, CPU_FRAMES = 2000, 100
SIZE = "7b"
"""Mimi of the real size fits every machine."""


def run(wanted: Wanted) -> Iterator[Row]:
    """Time encoder, quantiser, decoder and round trip over streamed frames, the last also compiled and with sound that
    comes from the host and goes back there; for several callers too, if `sessions` are asked for.
    """
    roof()
    name = wanted.model or RANDOM + SIZE
    if name.startswith(RANDOM):
        config = config_of(name.removeprefix(RANDOM)).mimi
        mimi = random_mimi(config)
    else:
        folder = ModelFolder(resolve(name, CODEC_FILES))
        config, mimi = folder.codec[0], folder.load_mimi()
    frames = wanted.n_frames(GPU_FRAMES, CPU_FRAMES)
    for slots in wanted.sessions or (1,):
        yield from _rows(mimi, config, slots, frames)


def _rows(mimi: Mimi, config: MimiConfig, slots: int, frames: int) -> Iterator[Row]:
    encoder, decoder = mimi.init_encoder(slots), mimi.init_decoder(slots)
    sound = np.random.default_rng(0).normal(0, 0.1, (slots, FRAME_SAMPLES)).astype(np.float32)
    pcm = mx.array(sound)
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

    def both(
        heard: mx.array, encoder: EncoderState, decoder: DecoderState
    ) -> tuple[mx.array, EncoderState, DecoderState]:
        tokens, encoder = mimi.encode_step(heard, encoder)
        out, decoder = mimi.decode_step(tokens, decoder)
        return out, encoder, decoder

    fused = mx.compile(both)

    def round_trip() -> None:
        nonlocal encoder, decoder
        out, encoder, decoder = both(mx.array(sound), encoder, decoder)
        mx.eval(out, encoder, decoder)
        np.array(out)

    def compiled() -> None:
        nonlocal encoder, decoder
        out, encoder, decoder = fused(mx.array(sound), encoder, decoder)
        mx.eval(out, encoder, decoder)
        np.array(out)

    hear, say = of_encoder(mimi, config, slots), of_decoder(mimi, config, slots)
    steps = {"encoder": (encode, hear), "quantiser": (quantise, None), "decoder": (decode, say)}
    steps |= {"round trip": (round_trip, hear + say), "round trip, compiled": (compiled, hear + say)}
    counted = {
        "encoder": n_kernels(mimi.latents(pcm, encoder)),
        "quantiser": n_kernels(mimi.quantizer.encode(latent)),
        "decoder": n_kernels(mimi.decode_step(codes, decoder)),
        "round trip": n_kernels(both(pcm, encoder, decoder)),
        "round trip, compiled": n_kernels(fused(pcm, encoder, decoder)),
    }
    for name, (step, demand) in steps.items():
        ms = measure(step, frames)
        extra: dict[str, object] = {"slots": slots, "operations_by": kernels(), "kernels": counted[name]}
        yield Row(name, ms, extra | (against(demand, ms) if demand else {}))
