"""The depformer: within one frame, text token and hidden vector to one code per codebook.

Each codebook is a step with linear weights of its own; the norms are shared. There is no positional embedding, no
window and no final norm, and nothing is remembered from one frame to the next.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from personaplex.config import LMConfig
from personaplex.nn.tables import PerStepLinear, TokenTables

Past = list[tuple[mx.array, mx.array]]
"""Keys and values [N, H, steps so far, D] of each layer, within one frame."""


class DepformerAttention(nn.Module):
    """Causal attention over the steps of one frame."""

    def __init__(self, dim: int, n_heads: int, n_steps: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = PerStepLinear(n_steps, dim, 3 * dim)
        self.out_proj = PerStepLinear(n_steps, dim, dim)

    def __call__(
        self, x: mx.array, first: int, past: tuple[mx.array, mx.array] | None
    ) -> tuple[mx.array, tuple[mx.array, mx.array]]:
        n, steps, dim = x.shape
        head = dim // self.n_heads
        q, k, v = self.in_proj(x, first).reshape(n, steps, 3, self.n_heads, head).transpose(2, 0, 3, 1, 4)
        if past is not None:
            k, v = mx.concatenate([past[0], k], axis=2), mx.concatenate([past[1], v], axis=2)
        mask = "causal" if steps > 1 else None
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=head**-0.5, mask=mask)
        return self.out_proj(out.transpose(0, 2, 1, 3).reshape(n, steps, dim), first), (k, v)


class DepformerFeedForward(nn.Module):
    """SiLU-gated feed-forward with weights per step."""

    def __init__(self, dim: int, hidden: int, n_steps: int) -> None:
        super().__init__()
        self.linear_in = PerStepLinear(n_steps, dim, 2 * hidden)
        self.linear_out = PerStepLinear(n_steps, hidden, dim)

    def __call__(self, x: mx.array, first: int) -> mx.array:
        gate, value = mx.split(self.linear_in(x, first), 2, axis=-1)
        return self.linear_out(nn.silu(gate) * value, first)


class DepformerLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, dim: int, n_heads: int, hidden: int, n_steps: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-8), nn.RMSNorm(dim, eps=1e-8)
        self.attention = DepformerAttention(dim, n_heads, n_steps)
        self.feedforward = DepformerFeedForward(dim, hidden, n_steps)

    def __call__(
        self, x: mx.array, first: int, past: tuple[mx.array, mx.array] | None
    ) -> tuple[mx.array, tuple[mx.array, mx.array]]:
        attended, past = self.attention(self.norm1(x), first, past)
        x = x + attended
        return x + self.feedforward(self.norm2(x), first), past


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

    def _run(self, z: mx.array, embedded: mx.array, first: int, past: Past | None) -> tuple[mx.array, Past]:
        """Steps first ... first + n - 1 at once: z [N, dim], embedded [N, n, dim] -> logits [N, n, card]."""
        n = embedded.shape[1]
        x = self.input_proj(mx.broadcast_to(z[:, None], (z.shape[0], n, z.shape[1])), first) + embedded
        after = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, first, past[i] if past else None)
            after.append(kv)
        return self.heads(x, first), after

    def teacher_forced(self, z: mx.array, text: mx.array, codes: mx.array) -> mx.array:
        """All steps in one pass, given the right tokens: z [N, dim], text [N], codes [N, S] -> logits [N, S, card]."""
        embedded = [self.text_emb(text[:, None])]
        if self.n_steps > 1:
            embedded.append(self.audio_emb(codes[:, : self.n_steps - 1]))
        return self._run(z, mx.concatenate(embedded, axis=1), 0, None)[0]

    def generate(
        self, z: mx.array, text: mx.array, choose: Callable[[int, mx.array], mx.array]
    ) -> tuple[mx.array, mx.array]:
        """One frame, step by step: z [N, dim], text [N] -> codes [N, S] int32, logits [N, S, card].

        `choose(step, logits [N, card])` returns the code [N] that step s puts out and step s + 1 hears.
        """
        past: Past | None = None
        token, codes, logits = text, [], []
        for step in range(self.n_steps):
            embedded = self.text_emb(token[:, None]) if step == 0 else self.audio_emb(token[:, None], step - 1)
            out, past = self._run(z, embedded, step, past)
            token = choose(step, out[:, 0])
            codes.append(token)
            logits.append(out)
        return mx.stack(codes, axis=1), mx.concatenate(logits, axis=1)
