"""Pre-norm transformer stacks: one for the language model's frames, one for each end of the codec."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from personaplex.cuda import latents, stack
from personaplex.cuda.kernel import enabled
from personaplex.cuda.latents import LatentsLayer
from personaplex.cuda.matrix import LayerWeights
from personaplex.cuda.ring import moved_on, served
from personaplex.nn.attention import KV, Attention, Decoding, Ring, Window, empty_ring, open_window
from personaplex.nn.few import LayerNorm, RMSNorm
from personaplex.nn.projection import activated, added, added_scaled, gated, matrix


class GatedFeedForward(nn.Module):
    """SiLU-gated feed-forward (reference gating.py): the first half of `linear_in`'s rows is the gate."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def __call__(self, norm: nn.Module, x: mx.array) -> mx.array:
        """Rows x [N, dim], to be normalised -> what `last` takes."""
        return gated(norm, self.linear_in, x)

    @property
    def last(self) -> nn.Module:
        """The linear map that ends the branch."""
        return self.linear_out


class FeedForward(nn.Module):
    """Plain feed-forward with the exact (erf) GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, dim, bias=False)

    def __call__(self, norm: nn.Module, x: mx.array) -> mx.array:
        """Rows x [N, dim], to be normalised -> what `last` takes."""
        return activated(norm, self.linear1, x)

    @property
    def last(self) -> nn.Module:
        """The linear map that ends the branch."""
        return self.linear2


class Residual(nn.Module):
    """The end of a residual branch: x plus a linear map of it."""

    def __call__(self, x: mx.array, linear: nn.Module, branch: mx.array) -> mx.array:
        return added(x, linear, branch)


class LayerScale(Residual):
    """A residual branch with a learned gain per channel."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.scale = mx.full((dim,), initial)

    def __call__(self, x: mx.array, linear: nn.Module, branch: mx.array) -> mx.array:
        return added_scaled(x, linear, branch, self.scale)


class Layer(nn.Module):
    """x += attention(norm(x)); x += feedforward(norm(x)), each branch scaled if the network has layer scales."""

    def __init__(
        self,
        attention: Attention,
        feedforward: GatedFeedForward | FeedForward,
        norms: tuple[nn.Module, nn.Module],
        scale: Callable[[], Residual],
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attention = attention
        self.feedforward = feedforward
        self.scale1, self.scale2 = scale(), scale()

    def __call__(self, x: mx.array, ring: Ring | None, window: Window | Decoding) -> tuple[mx.array, Ring]:
        """Rows x [B x T, dim] of one call -> the same, and the layer's ring after it."""
        attended, after = self.attention(self.norm1, x, ring, window)
        x = self.scale1(x, self.attention.out_proj, attended)
        return self.scale2(x, self.feedforward.last, self.feedforward(self.norm2, x)), after

    def latents_weights(self) -> LatentsLayer | None:
        """What the kernel for a codec's whole layers takes of this one; None for another kind of layer."""
        norms, scales = (self.norm1, self.norm2), (self.scale1, self.scale2)
        if not isinstance(self.feedforward, FeedForward) or not all(isinstance(norm, LayerNorm) for norm in norms):
            return None
        maps = (
            self.attention.in_proj,
            self.attention.out_proj,
            self.feedforward.linear1,
            self.feedforward.linear2,
        )
        if any(type(linear) is not nn.Linear for linear in maps) or not all(
            isinstance(of, LayerScale) for of in scales
        ):
            return None
        first, out, up, down = (linear.weight for linear in maps)
        (gain1, gain2), (shift1, shift2) = (norm.weight for norm in norms), (norm.bias for norm in norms)
        return LatentsLayer(gain1, shift1, first, out, self.scale1.scale, gain2, shift2, up, down, self.scale2.scale)

    def weights(self) -> LayerWeights | None:
        """What a kernel that does whole layers takes of this one; None for another kind of layer."""
        if not isinstance(self.feedforward, GatedFeedForward) or not isinstance(self.norm1, RMSNorm):
            return None
        maps = (
            self.attention.in_proj,
            self.attention.out_proj,
            self.feedforward.linear_in,
            self.feedforward.linear_out,
        )
        found = [weight for linear in maps if (weight := matrix(linear)) is not None]
        if len(found) < len(maps):
            return None
        return LayerWeights(self.norm1.weight, found[0], found[1], self.norm2.weight, found[2], found[3])


class TransformerState(NamedTuple):
    """The rings of all layers and `position` [B], the tokens each slot has seen."""

    rings: tuple[Ring, ...]
    position: mx.array

    def shortened(self, n_rows: int) -> TransformerState:
        """This state, which has seen nothing, with rings of `n_rows` instead: for a call that needs no more."""

        def ring(of: Ring) -> Ring:
            return type(of)(*(mx.zeros((*rows.shape[:2], n_rows, rows.shape[3]), rows.dtype) for rows in of))

        return self._replace(rings=tuple(ring(of) for of in self.rings))

    def lengthened(self, n_rows: int) -> TransformerState:
        """The same with rings of `n_rows`, the further ones zero: what `shortened` left out."""

        def ring(of: Ring) -> Ring:
            return type(of)(*(mx.pad(rows, [(0, 0), (0, 0), (0, n_rows - rows.shape[2]), (0, 0)]) for rows in of))

        return self._replace(rings=tuple(ring(of) for of in self.rings))


class Transformer(nn.Module):
    """A causal stack with a sliding window of `context` tokens."""

    def __init__(self, layers: list[Layer], context: int, max_period: float) -> None:
        super().__init__()
        self.context = context
        self.max_period = max_period
        self.layers = layers

    def init_state(
        self, slots: int, n_tokens: int = 1, dtype: mx.Dtype = mx.float32, extra_rows: int = 0, kv_bits: int = 16
    ) -> TransformerState:
        """Fresh state for calls of up to `n_tokens` at a time (longer calls work too, only slower).

        `extra_rows` make room for pinned tokens, and for as many old ones as a state may be set back by. With
        `kv_bits` 8 the rings are packed, else they are of `dtype`.
        """
        attention = self.layers[0].attention
        rows = self.context + n_tokens - 1 + extra_rows
        rows += -rows % n_tokens  # whole calls only, so that a call's rows never wrap half way
        shape = (slots, attention.n_heads, rows, self._head)
        rings = tuple(empty_ring(shape, dtype, kv_bits) for _ in self.layers)
        return TransformerState(rings, mx.zeros((slots,), mx.int32))

    @property
    def _head(self) -> int:
        """Channels of one attention head."""
        return int(self.layers[0].norm1.weight.size // self.layers[0].attention.n_heads)

    def __call__(
        self, x: mx.array, state: TransformerState, pinned: mx.array | None = None
    ) -> tuple[mx.array, TransformerState]:
        """The next tokens x [B, T, dim] -> [B, T, dim], and the state after them.

        The first `pinned` [B] tokens of each slot stay in view, as in `whole`; T is then at most `context`.
        """
        rings = [(ring[0], ring[1]) for ring in state.rings]
        if (layers := self._for_one_launch(x, state)) is not None:
            out = stack.step(x[0], state.position, pinned, layers, rings, self._launch_shape(state))
        elif pinned is None and (latent := self._latents_for_one_launch(x, state)) is not None:
            out = latents.step(x[0], state.position, latent, rings, self.context, self.max_period)
        else:
            outputs, after = self.every_layer(x, state, pinned)
            return outputs[-1], after
        return out[None], state._replace(position=moved_on(state.position, x.shape[1], out))

    def _launch_shape(self, state: TransformerState) -> stack.Shape:
        _, heads, n_rows, head = state.rings[0][0].shape
        layer = self.layers[0]
        hidden = layer.feedforward.linear_in.weight.shape[0] // 2
        return stack.Shape(heads * head, heads, hidden, n_rows, self.context, int(self.max_period))

    def _for_one_launch(self, x: mx.array, state: TransformerState) -> list[LayerWeights] | None:
        """The layers as the kernel for one token of one session takes them, if it serves this call."""
        if not (x.shape[1] == 1 and self._one_session(x, state, mx.bfloat16)):
            return None
        layers = [weights for layer in self.layers if (weights := layer.weights()) is not None]
        if len(layers) < len(self.layers):
            return None
        shape = self._launch_shape(state)
        return layers if all(stack.serves(layer, shape) for layer in layers) else None

    def _latents_for_one_launch(self, x: mx.array, state: TransformerState) -> list[LatentsLayer] | None:
        """The same of a codec's layers, for one or two latents."""
        _, heads, n_rows, head = state.rings[0][0].shape
        room = served(x.shape[1], n_rows, self.context, head, self.max_period, False, x.dtype)
        if not (room and self._one_session(x, state, mx.float32)):
            return None
        layers = [weights for layer in self.layers if (weights := layer.latents_weights()) is not None]
        whole = len(layers) == len(self.layers)
        return layers if whole and latents.serves(layers, heads, x.shape[1], self.context) else None

    def _one_session(self, x: mx.array, state: TransformerState, dtype: mx.Dtype) -> bool:
        """Whether a kernel for one session's layers may take this call, all in `dtype`."""
        ring = state.rings[0]
        # A prompt that is read has a ring of its own length: no kernel is built for that.
        whole = len(x) == 1 and ring[0].shape[2] >= self.context and self.max_period == int(self.max_period)
        kind = x.dtype == dtype and all(type(ring) is KV and ring.k.dtype == dtype for ring in state.rings)
        return whole and kind and not self.training and enabled("stack")

    def every_layer(
        self, x: mx.array, state: TransformerState, pinned: mx.array | None = None
    ) -> tuple[list[mx.array], TransformerState]:
        """As a call, with what comes out of each layer, [B, T, dim] each."""
        n_tokens, n_rows = x.shape[1], state.rings[0].k.shape[2]
        sizes = n_tokens, n_rows, self.context, self._head, self.max_period
        window = open_window(state.position, *sizes, pinned, x.dtype, trained=self.training)
        rows, rings, outputs = x.reshape(-1, x.shape[2]), [], []
        for layer, ring in zip(self.layers, state.rings, strict=True):
            rows, after = layer(rows, ring, window)
            rings.append(after)
            outputs.append(rows.reshape(x.shape))
        return outputs, TransformerState(tuple(rings), window.after(rows))

    def whole(self, x: mx.array, pinned: mx.array | None = None) -> mx.array:
        """A whole sequence x [B, T, dim] -> [B, T, dim], nothing remembered: for training.

        The first `pinned` [B] tokens of each sequence stay in view when the window has moved past them.
        """
        start = mx.zeros((x.shape[0],), mx.int32)
        window = open_window(start, x.shape[1], 0, self.context, self._head, self.max_period, pinned, x.dtype)
        rows = x.reshape(-1, x.shape[2])
        for layer in self.layers:
            rows, _ = layer(rows, None, window)
        return rows.reshape(x.shape)


def temporal_stack(dim: int, n_heads: int, n_layers: int, hidden: int, max_period: float, context: int) -> Transformer:
    """The language model's kind: RMS norm (eps 1e-8, in float32), gated SiLU, no layer scale."""
    layers = [
        Layer(
            Attention(dim, n_heads),
            GatedFeedForward(dim, hidden),
            (RMSNorm(dim, eps=1e-8), RMSNorm(dim, eps=1e-8)),
            Residual,
        )
        for _ in range(n_layers)
    ]
    return Transformer(layers, context, max_period)


def codec_stack(
    dim: int, n_heads: int, n_layers: int, hidden: int, max_period: float, context: int, layer_scale: float
) -> Transformer:
    """Mimi's kind: layer norm, plain GELU, a layer scale on each branch."""
    layers = [
        Layer(
            Attention(dim, n_heads),
            FeedForward(dim, hidden),
            (LayerNorm(dim), LayerNorm(dim)),
            lambda: LayerScale(dim, layer_scale),
        )
        for _ in range(n_layers)
    ]
    return Transformer(layers, context, max_period)
