"""Causal convolutions that carry their past as state, in the form that is fast on every backend.

Layout is [B, T, channels]. A fresh tail is zeros, which is the reference's left padding: a stream cut into any
chunks, and the whole file in one, give the same numbers.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn


class CausalConv1d(nn.Module):
    """A strided causal convolution; T must be a multiple of the stride. State: the last kernel - stride inputs."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.weight = mx.zeros((n_out, kernel, n_in))
        if bias:
            self.bias = mx.zeros((n_out,))

    def init_state(self, slots: int) -> mx.array:
        """The tail before the first sample: zeros [B, kernel - stride, n_in]."""
        _, kernel, n_in = self.weight.shape
        return mx.zeros((slots, kernel - self.stride, n_in))

    def __call__(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, T, n_in] -> [B, T / stride, n_out]."""
        x = mx.concatenate([tail, x], axis=1)
        y = mx.conv1d(x, self.weight, stride=self.stride)
        return (y + self.bias if "bias" in self else y), x[:, x.shape[1] - tail.shape[1] :]


class CausalConvTranspose1d(nn.Module):
    """A causal transposed convolution of kernel 2 x stride: one matmul and an overlap-add.

    MLX's own `conv_transpose1d` is some sixty times slower on a CPU. State: the half-window [B, stride, n_out] that
    the last input already contributed to the next one's samples.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = mx.zeros((2 * stride, n_out, n_in))  # as a linear map's: rows are outputs
        self.bias = mx.zeros((n_out,))

    def init_state(self, slots: int) -> mx.array:
        """The overlap before the first input: zeros [B, stride, n_out]."""
        return mx.zeros((slots, self.stride, self.weight.shape[1]))

    def __call__(self, x: mx.array, overlap: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, T, n_in] -> [B, T x stride, n_out]."""
        _, n_out, n_in = self.weight.shape
        slots, n_tokens, _ = x.shape
        windows = (x @ self.weight.reshape(-1, n_in).T).reshape(slots, n_tokens, 2, self.stride, n_out)
        late = mx.concatenate([overlap[:, None], windows[:, :, 1]], axis=1)
        y = windows[:, :, 0] + late[:, :-1] + self.bias
        return y.reshape(slots, n_tokens * self.stride, n_out), late[:, -1]


class DepthwiseUpsample(nn.Module):
    """The same per channel, without bias: Mimi's step from 12.5 to 25 Hz. State: the last input [B, 1, channels]."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = mx.zeros((2, stride, channels))

    def init_state(self, slots: int) -> mx.array:
        """The input before the first: zeros."""
        return mx.zeros((slots, 1, self.weight.shape[2]))

    def __call__(self, x: mx.array, last: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, T, channels] -> [B, T x stride, channels]."""
        slots, n_tokens, channels = x.shape
        past = mx.concatenate([last, x], axis=1)
        y = self.weight[0] * past[:, 1:, None] + self.weight[1] * past[:, :-1, None]
        return y.reshape(slots, n_tokens * self.stride, channels), past[:, -1:]


class ReplicateDownsample(nn.Module):
    """A strided causal convolution whose left padding repeats the first input: Mimi's step from 25 to 12.5 Hz.

    State: the last kernel - stride inputs, and whether the slot has begun ([B, 1, 1] bool).
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(channels, channels, 2 * stride, stride, bias=False)

    def init_state(self, slots: int) -> tuple[mx.array, mx.array]:
        """A tail that the first input will replace."""
        return self.conv.init_state(slots), mx.zeros((slots, 1, 1), mx.bool_)

    def __call__(self, x: mx.array, state: tuple[mx.array, mx.array]) -> tuple[mx.array, tuple[mx.array, mx.array]]:
        """x [B, T, channels] -> [B, T / stride, channels]."""
        tail, begun = state
        y, tail = self.conv(x, mx.where(begun, tail, x[:, :1]))
        return y, (tail, mx.ones_like(begun))
