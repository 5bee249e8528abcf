"""SEANet: the convolutional ends of Mimi (reference seanet.py), 1920 samples to 2 latents and back.

Every 1x1 convolution is a linear map over channels. Streaming state is a tuple of convolution tails, in order. An ELU
stands between any two convolutions; it is named at the one that computes it in one pass with its own sums.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from personaplex.config import SeanetConfig
from personaplex.cuda.conv import pointwise
from personaplex.nn.activation import elu
from personaplex.nn.card import by_kernels
from personaplex.nn.conv import CausalConv1d, CausalConvTranspose1d

SeanetState = tuple[mx.array, ...]


class ResidualUnit(nn.Module):
    """elu(x + conv1(elu(conv3(elu(x))))): nothing but activated reads what comes out."""

    def __init__(self, channels: int, kernel: int, compress: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(channels, channels // compress, kernel)
        self.proj = nn.Linear(channels // compress, channels)

    def init_state(self, slots: int) -> mx.array:
        """The tail of the wide convolution; the 1x1 has none."""
        return self.conv.init_state(slots)

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        hidden, tail = self.conv(x, tail, elu_in=True, elu_out=True)
        if by_kernels(self, x):
            return pointwise(hidden, self.proj.weight, self.proj.bias, x, elu_out=True), tail
        return elu(x + self.proj(hidden)), tail


class _Chain(nn.Module):
    """First convolution, then per ratio two layers, then a last convolution."""

    first: CausalConv1d
    stages: list[list[nn.Module]]
    last: CausalConv1d

    def init_state(self, slots: int) -> SeanetState:
        """Fresh tails of every convolution, in order."""
        inner = [layer for stage in self.stages for layer in stage]
        return tuple(layer.init_state(slots) for layer in [self.first, *inner, self.last])


class SeanetEncoder(_Chain):
    """Waveform [B, S, 1] -> latents [B, S / hop, dimension]."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        width = config.n_filters
        self.first = CausalConv1d(1, width, config.kernel_size)
        self.stages = []
        for ratio in reversed(config.ratios):
            unit = ResidualUnit(width, config.residual_kernel_size, config.compress)
            self.stages.append([unit, CausalConv1d(width, 2 * width, 2 * ratio, ratio)])
            width *= 2
        self.last = CausalConv1d(width, config.dimension, config.last_kernel_size)

    def __call__(self, x: mx.array, state: SeanetState) -> tuple[mx.array, SeanetState]:
        tails = iter(state)
        x, tail = self.first(x, next(tails))
        after = [tail]
        for unit, down in self.stages:
            x, tail = unit(x, next(tails))
            after.append(tail)
            x, tail = down(x, next(tails))
            after.append(tail)
        x, tail = self.last(x, next(tails), elu_in=True)
        return x, (*after, tail)


class SeanetDecoder(_Chain):
    """Latents [B, T, dimension] -> waveform [B, T x hop, 1]; no output non-linearity and no clipping."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        width = config.n_filters * 2 ** len(config.ratios)
        self.first = CausalConv1d(config.dimension, width, config.kernel_size)
        self.stages = []
        for ratio in config.ratios:
            up = CausalConvTranspose1d(width, width // 2, ratio)
            width //= 2
            self.stages.append([up, ResidualUnit(width, config.residual_kernel_size, config.compress)])
        self.last = CausalConv1d(width, 1, config.last_kernel_size)

    def __call__(self, x: mx.array, state: SeanetState) -> tuple[mx.array, SeanetState]:
        tails = iter(state)
        x, tail = self.first(x, next(tails), elu_out=True)
        after = [tail]
        for up, unit in self.stages:
            x, tail = up(x, next(tails))
            after.append(tail)
            x, tail = unit(x, next(tails))
            after.append(tail)
        x, tail = self.last(x, next(tails))
        return x, (*after, tail)
