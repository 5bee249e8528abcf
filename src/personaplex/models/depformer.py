"""The depformer: within one frame, text token and hidden vector to one code per codebook.

Each codebook is a step with linear weights of its own; the norms are shared. There is no positional embedding, no
window and no final norm, and nothing is remembered from one frame to the next.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from personaplex.config import LMConfig
from personaplex.cuda import codes as codes_by_tensor_cores
from personaplex.cuda.depformer import Choice, Weights, attend_steps, attends, draw_frame, serves
from personaplex.cuda.kernel import enabled
from personaplex.cuda.matrix import LayerWeights
from personaplex.nn.few import RMSNorm, attend
from personaplex.nn.tables import PerStepLinear, TokenTables


class Past:
    """What one layer's steps so far within one frame attend to."""

    def __init__(self, n_heads: int, n_steps: int) -> None:
        self.n_heads, self.n_steps = n_heads, n_steps
        self.rows: list[mx.array] = []
        self.k: list[mx.array] = []
        self.v: list[mx.array] = []

    def attend(self, rows: mx.array) -> mx.array:
        """Queries, keys and values [N, 3 dim] of the next step -> what it makes of all so far, [N, dim]."""
        n, width = rows.shape
        if enabled() and attends(rows, self.n_heads):
            self.rows.append(rows)
            return attend_steps(self.rows, self.n_heads, self.n_steps)
        q, k, v = mx.split(rows.reshape(n, 3 * self.n_heads, 1, -1), 3, axis=1)
        self.k.append(k)
        self.v.append(v)
        # Attention to one step alone is that step's value.
        alone = len(self.k) == 1
        out = v if alone else attend(q, mx.concatenate(self.k, axis=2), mx.concatenate(self.v, axis=2), None)
        return out.reshape(n, width // 3)


class DepformerAttention(nn.Module):
    """Causal attention over the steps of one frame."""

    def __init__(self, dim: int, n_heads: int, n_steps: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = PerStepLinear(n_steps, dim, 3 * dim)
        self.out_proj = PerStepLinear(n_steps, dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        """Every step at once: x [N, S, dim] -> [N, S, dim]."""
        n, steps, dim = x.shape
        head = dim // self.n_heads
        q, k, v = self.in_proj(x, 0).reshape(n, steps, 3, self.n_heads, head).transpose(2, 0, 3, 1, 4)
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=head**-0.5, mask="causal")
        return self.out_proj(out.transpose(0, 2, 1, 3).reshape(n, steps, dim), 0)

    def onto(self, residual: mx.array, x: mx.array, step: int, past: Past) -> mx.array:
        """One step: residual [N, dim] + the attention of x [N, dim], which joins the `past`."""
        return self.out_proj.add_one(residual, past.attend(self.in_proj.one(x, step)), step)


class DepformerFeedForward(nn.Module):
    """SiLU-gated feed-forward with weights per step."""

    def __init__(self, dim: int, hidden: int, n_steps: int) -> None:
        super().__init__()
        self.linear_in = PerStepLinear(n_steps, dim, 2 * hidden)
        self.linear_out = PerStepLinear(n_steps, hidden, dim)

    def __call__(self, x: mx.array) -> mx.array:
        """Every step at once: x [N, S, dim] -> [N, S, dim]."""
        gate, value = mx.split(self.linear_in(x, 0), 2, axis=-1)
        return self.linear_out(nn.silu(gate) * value, 0)

    def onto(self, residual: mx.array, x: mx.array, step: int) -> mx.array:
        """One step: residual [N, dim] + what this makes of x [N, dim]."""
        gate, value = mx.split(self.linear_in.one(x, step), 2, axis=-1)
        return self.linear_out.add_one(residual, nn.silu(gate) * value, step)


class DepformerLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, dim: int, n_heads: int, hidden: int, n_steps: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(dim, eps=1e-8), RMSNorm(dim, eps=1e-8)
        self.attention = DepformerAttention(dim, n_heads, n_steps)
        self.feedforward = DepformerFeedForward(dim, hidden, n_steps)

    def __call__(self, x: mx.array) -> mx.array:
        """Every step at once: x [N, S, dim] -> [N, S, dim]."""
        x = x + self.attention(self.norm1(x))
        return x + self.feedforward(self.norm2(x))

    def step(self, x: mx.array, step: int, past: Past) -> mx.array:
        """One step: x [N, dim] -> [N, dim]."""
        x = self.attention.onto(x, self.norm1(x), step, past)
        return self.feedforward.onto(x, self.norm2(x), step)

    @property
    def weights(self) -> LayerWeights:
        """The layer as a kernel takes it."""
        attention, feedforward = self.attention, self.feedforward
        return LayerWeights(
            self.norm1.weight,
            attention.in_proj.matrix,
            attention.out_proj.matrix,
            self.norm2.weight,
            feedforward.linear_in.matrix,
            feedforward.linear_out.matrix,
        )


class Depformer(nn.Module):
    """`n_steps` of the checkpoint's steps: 8 for the agent's codebooks, 16 to predict the user's as well."""

    def __init__(self, config: LMConfig, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps
        dim = config.depformer_dim
        self.input_proj = PerStepLinear(n_steps, config.dim, dim)
        self.text_emb = TokenTables(1, config.text_card + 1, dim)
        self.audio_emb = TokenTables(n_steps - 1, config.card + 1, dim)
        self.layers = [
            DepformerLayer(dim, config.depformer_num_heads, config.depformer_hidden, n_steps)
            for _ in range(config.depformer_num_layers)
        ]
        self.heads = PerStepLinear(n_steps, dim, config.card)

    def teacher_forced(self, z: mx.array, text: mx.array, codes: mx.array) -> mx.array:
        """All steps in one pass, given the right tokens: z [N, dim], text [N], codes [N, S] -> logits [N, S, card]."""
        embedded = [self.text_emb(text[:, None])]
        if self.n_steps > 1:
            embedded.append(self.audio_emb(codes[:, : self.n_steps - 1]))
        every = mx.broadcast_to(z[:, None], (z.shape[0], self.n_steps, z.shape[1]))
        x = self.input_proj(every, 0) + mx.concatenate(embedded, axis=1)
        for layer in self.layers:
            x = layer(x)
        return self.heads(x, 0)

    def generate(
        self,
        z: mx.array,
        text: mx.array,
        choose: Callable[[int, mx.array], mx.array],
        choice: Choice | None = None,
    ) -> tuple[mx.array, mx.array]:
        """One frame, step by step: z [N, dim], text [N] -> codes [N, S] int32, logits [N, S, card].

        `choose(step, logits [N, card])` returns the code [N] that step s puts out and step s + 1 hears. `choice` is
        the same as numbers, where they can say it: then one kernel may do all.
        """
        if choice is not None and enabled():
            weights = self.weights
            if enabled("tiles") and codes_by_tensor_cores.serves(weights, z):
                return codes_by_tensor_cores.draw_frame(weights, z, text, choice)
            if serves(weights, z):
                return draw_frame(weights, z, text, choice)
        pasts = [Past(layer.attention.n_heads, self.n_steps) for layer in self.layers]
        token, codes, logits = text, [], []
        for step, projected in enumerate(self.input_proj.every(z)):
            tables, table = (self.audio_emb, step - 1) if step else (self.text_emb, 0)
            x = projected + tables(token[:, None], table)[:, 0]
            for layer, past in zip(self.layers, pasts, strict=True):
                x = layer.step(x, step, past)
            logits.append(self.heads.one(x, step))
            token = choose(step, logits[-1])
            codes.append(token)
        return mx.stack(codes, axis=1), mx.stack(logits, axis=1)

    @property
    def weights(self) -> Weights:
        """All of it as a kernel takes it."""
        return Weights(
            self.n_steps,
            self.layers[0].attention.n_heads,
            self.input_proj.matrix,
            self.text_emb.matrix,
            self.audio_emb.matrix,
            self.heads.matrix,
            tuple(layer.weights for layer in self.layers),
        )
