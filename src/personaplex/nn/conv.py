"""Causal convolutions that carry their past as state, in the form that is fast on every backend.

Layout is [B, T, channels]. A fresh tail is zeros, which is the reference's left padding: a stream cut into any
chunks, and the whole file in one, give the same numbers. What a convolution remembers is activated already.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from personaplex.cuda import conv as kernels
from personaplex.nn.activation import elu
from personaplex.nn.card import by_kernels
from personaplex.nn.taps import Kept, add_taps, by_taps


class CausalConv1d(nn.Module):
    """A strided causal convolution; T must be a multiple of the stride. State: the last kernel - stride inputs."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.weight = mx.zeros((n_out, kernel, n_in))
        if bias:
            self.bias = mx.zeros((n_out,))
        self._taps = Kept(_conv_taps)

    def init_state(self, slots: int) -> mx.array:
        """The tail before the first sample: zeros [B, kernel - stride, n_in]."""
        _, kernel, n_in = self.weight.shape
        return mx.zeros((slots, kernel - self.stride, n_in))

    def __call__(
        self, x: mx.array, tail: mx.array, *, elu_in: bool = False, elu_out: bool = False
    ) -> tuple[mx.array, mx.array]:
        """x [B, T, n_in] -> [B, T / stride, n_out]; `elu_in` activates x first, `elu_out` what comes out."""
        if by_kernels(self, x):
            bias = self.get("bias")
            return kernels.conv(x, tail, self.weight, bias, self.stride, elu_in=elu_in, elu_out=elu_out)
        y, tail = self._stock(elu(x) if elu_in else x, tail)
        return (elu(y) if elu_out else y), tail

    def _stock(self, x: mx.array, tail: mx.array) -> tuple[mx.array, mx.array]:
        n_tokens = x.shape[1] // self.stride
        x = mx.concatenate([tail, x], axis=1)
        after = x[:, x.shape[1] - tail.shape[1] :]
        if self.weight.shape[1] % self.stride == 0 and by_taps(x, n_tokens, self.weight):
            strides = x.reshape(x.shape[0], -1, self.stride * x.shape[2])
            return add_taps(self.get("bias"), strides, self._taps(self.weight, self.stride)), after
        y = mx.conv1d(x, self.weight, stride=self.stride)
        return (y + self.bias if "bias" in self else y), after


class CausalConvTranspose1d(nn.Module):
    """A causal transposed convolution of kernel 2 x stride: one matmul and an overlap-add.

    MLX's own `conv_transpose1d` is some sixty times slower on a CPU. State: the last input [B, 1, n_in], which also
    sounds in the next one's samples.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = mx.zeros((2 * stride, n_out, n_in))  # as a linear map's: rows are outputs
        self.bias = mx.zeros((n_out,))
        self._taps = Kept(_transposed_taps)

    def init_state(self, slots: int) -> mx.array:
        """The input before the first: zeros."""
        return mx.zeros((slots, 1, self.weight.shape[2]))

    def __call__(self, x: mx.array, last: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, T, n_in] -> [B, T x stride, n_out]."""
        if by_kernels(self, x):
            return kernels.conv_transposed(x, last, self.weight, self.bias)
        _, n_out, n_in = self.weight.shape
        slots, n_tokens, _ = x.shape
        x = mx.concatenate([last, x], axis=1)
        if by_taps(x, n_tokens, self.weight):
            y = add_taps(mx.tile(self.bias, self.stride), x, self._taps(self.weight, self.stride))
        else:
            windows = (x @ self.weight.reshape(-1, n_in).T).reshape(slots, n_tokens + 1, 2, self.stride, n_out)
            y = windows[:, 1:, 0] + windows[:, :-1, 1] + self.bias
        return y.reshape(slots, n_tokens * self.stride, n_out), x[:, -1:]


def _conv_taps(weight: mx.array, stride: int) -> list[mx.array]:
    """[n_out, kernel, n_in] -> per stride of the kernel, the earliest first, [stride x n_in, n_out]."""
    n_out, kernel, n_in = weight.shape
    return [tap.T for tap in weight.reshape(n_out, kernel // stride, stride * n_in).swapaxes(0, 1)]


def _transposed_taps(weight: mx.array, stride: int) -> list[mx.array]:
    """[2 x stride, n_out, n_in] -> what the input before sounds like and what this one does [n_in, stride x n_out]."""
    return [half.reshape(-1, weight.shape[2]).T for half in (weight[stride:], weight[:stride])]


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
        if by_kernels(self, x):
            return kernels.upsample(x, last, self.weight), x if x.shape[1] == 1 else x[:, -1:]
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
        if by_kernels(self, x):
            y, tail, begun = kernels.conv_repeated(x, tail, begun, self.conv.weight, self.conv.stride)
            return y, (tail, begun)
        y, tail = self.conv(x, mx.where(begun, tail, x[:, :1]))
        return y, (tail, mx.ones_like(begun))
