"""Mimi: 24 kHz speech to 8 codes per 80 ms frame and back (Défossez et al. 2024, reference compression.py).

Encoding and decoding are streams: each call takes whole frames and a state, and returns the state after them. A
whole file is the same stream in larger calls, so the two are equal by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from personaplex.config import CodecTransformerConfig, MimiConfig
from personaplex.models.rvq import SplitQuantizer
from personaplex.models.seanet import SeanetDecoder, SeanetEncoder, SeanetState
from personaplex.nn.conv import DepthwiseUpsample, ReplicateDownsample
from personaplex.nn.transformer import Transformer, TransformerState, codec_stack
from personaplex.units import FRAME_SAMPLES

CHUNK_FRAMES = 64
"""Frames per call when a whole file is coded: large enough to be fast, small enough for hours of audio."""


class EncoderState(NamedTuple):
    """What the encoder remembers of a stream."""

    seanet: SeanetState
    transformer: TransformerState
    downsample: tuple[mx.array, mx.array]


class DecoderState(NamedTuple):
    """What the decoder remembers of a stream."""

    upsample: mx.array
    transformer: TransformerState
    seanet: SeanetState


def _transformer(config: CodecTransformerConfig) -> Transformer:
    return codec_stack(
        config.d_model,
        config.num_heads,
        config.num_layers,
        config.dim_feedforward,
        config.max_period,
        config.context,
        config.layer_scale,
    )


class Mimi(nn.Module):
    """The codec. Weights only; safe to share between any number of streams."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.latents_per_frame = config.latents_per_frame
        self.n_codebooks = config.num_codebooks
        self.n_bins = config.quantizer.bins
        self.encoder = SeanetEncoder(config.seanet)
        self.encoder_transformer = _transformer(config.transformer)
        self.downsample = ReplicateDownsample(config.seanet.dimension, config.latents_per_frame)
        self.quantizer = SplitQuantizer(config.quantizer, config.num_codebooks)
        self.upsample = DepthwiseUpsample(config.seanet.dimension, config.latents_per_frame)
        self.decoder_transformer = _transformer(config.transformer)
        self.decoder = SeanetDecoder(config.seanet)

    def init_encoder(self, slots: int, extra_frames: int = 0) -> EncoderState:
        """The state of `slots` encoders that have heard nothing; `extra_frames` is how far it may be set back."""
        rows = extra_frames * self.latents_per_frame
        transformer = self.encoder_transformer.init_state(slots, self.latents_per_frame, extra_rows=rows)
        return EncoderState(self.encoder.init_state(slots), transformer, self.downsample.init_state(slots))

    def init_decoder(self, slots: int, extra_frames: int = 0) -> DecoderState:
        """The state of `slots` decoders that have said nothing; `extra_frames` is how far it may be set back."""
        rows = extra_frames * self.latents_per_frame
        transformer = self.decoder_transformer.init_state(slots, self.latents_per_frame, extra_rows=rows)
        return DecoderState(self.upsample.init_state(slots), transformer, self.decoder.init_state(slots))

    def latents(self, pcm: mx.array, state: EncoderState) -> tuple[mx.array, EncoderState]:
        """pcm [B, S] (S whole frames, 24 kHz) -> unquantised latents [B, T, width] at 12.5 Hz."""
        x, seanet = self.encoder(pcm[..., None], state.seanet)
        x, transformer = self.encoder_transformer(x, state.transformer)
        x, downsample = self.downsample(x, state.downsample)
        return x, EncoderState(seanet, transformer, downsample)

    def encode_step(self, pcm: mx.array, state: EncoderState) -> tuple[mx.array, EncoderState]:
        """pcm [B, S] (S whole frames, 24 kHz) -> codes [B, K, T] int32."""
        latent, state = self.latents(pcm, state)
        return self.quantizer.encode(latent).swapaxes(1, 2), state

    def waveform(self, latent: mx.array, state: DecoderState) -> tuple[mx.array, DecoderState]:
        """Latents [B, T, width] at 12.5 Hz -> pcm [B, 1920 T]."""
        x, upsample = self.upsample(latent, state.upsample)
        x, transformer = self.decoder_transformer(x, state.transformer)
        x, seanet = self.decoder(x, state.seanet)
        return x[..., 0], DecoderState(upsample, transformer, seanet)

    def decode_step(self, codes: mx.array, state: DecoderState) -> tuple[mx.array, DecoderState]:
        """codes [B, K, T] -> pcm [B, 1920 T], unclipped."""
        return self.waveform(self.quantizer.decode(codes.swapaxes(1, 2)), state)

    def encode(self, pcm: mx.array) -> mx.array:
        """A whole recording [B, S] -> codes [B, K, T]; a last partial frame is padded with zeros."""
        return mx.concatenate([*self.encoding(pcm, CHUNK_FRAMES)], axis=2)

    def encoding(self, pcm: mx.array, n_frames: int) -> Iterator[mx.array]:
        """The same in pieces of `n_frames`, evaluated one by one."""
        pcm = mx.pad(pcm, [(0, 0), (0, -pcm.shape[1] % FRAME_SAMPLES)])
        state = self.init_encoder(pcm.shape[0])
        for start in range(0, pcm.shape[1], n_frames * FRAME_SAMPLES):
            codes, state = self.encode_step(pcm[:, start : start + n_frames * FRAME_SAMPLES], state)
            mx.eval(codes, state)
            yield codes

    def decode(self, codes: mx.array) -> mx.array:
        """Codes of a whole recording [B, K, T] -> pcm [B, 1920 T]."""
        state, pcm = self.init_decoder(codes.shape[0]), []
        for start in range(0, codes.shape[2], CHUNK_FRAMES):
            chunk, state = self.decode_step(codes[:, :, start : start + CHUNK_FRAMES], state)
            mx.eval(chunk, state)
            pcm.append(chunk)
        return mx.concatenate(pcm, axis=1)
