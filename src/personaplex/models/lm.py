"""The language model: 17 streams in, text and agent audio out (reference lm.py).

Every 80 ms the tokens of one column are summed into a vector, the temporal transformer turns the column's past into
a hidden vector z, the text head reads the next text token from z, and the depformer the next audio codes.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from personaplex.config import LMConfig
from personaplex.cuda import embedding
from personaplex.models.depformer import Depformer
from personaplex.models.streams import AGENT, N_STREAMS, TEXT, delay, initial_column, undelay
from personaplex.nn.few import RMSNorm
from personaplex.nn.projection import plain
from personaplex.nn.tables import TokenTables
from personaplex.nn.transformer import TransformerState, temporal_stack


class LanguageModel(nn.Module):
    """Temporal transformer and depformer. Weights only; `depformer_steps` of the checkpoint's are kept."""

    def __init__(self, config: LMConfig, depformer_steps: int = 8) -> None:
        super().__init__()
        self.config = config
        self.text_emb = TokenTables(1, config.text_card + 1, config.dim)
        self.audio_emb = TokenTables(config.n_q, config.card + 1, config.dim)
        self.temporal = temporal_stack(
            config.dim, config.num_heads, config.num_layers, config.hidden, config.max_period, config.context
        )
        self.out_norm = RMSNorm(config.dim, eps=1e-8)
        self.text_head = nn.Linear(config.dim, config.text_card, bias=False)
        self.depformer = Depformer(config, depformer_steps)

    @property
    def dtype(self) -> mx.Dtype:
        """The type that activations and the KV ring have."""
        return self.out_norm.weight.dtype

    def init_state(self, slots: int, extra_rows: int = 0, kv_bits: int = 16) -> TransformerState:
        """The temporal transformer's state before the first column; `extra_rows` for pinning and setting back.

        With `kv_bits` 8 its keys and values are packed into half the memory.
        """
        return self.temporal.init_state(slots, dtype=self.dtype, extra_rows=extra_rows, kv_bits=kv_bits)

    def embed(self, columns: mx.array) -> mx.array:
        """Columns [B, T, 17] -> [B, T, dim]: the sum of one row per stream."""
        tables = self.text_emb.matrix, self.audio_emb.matrix
        if not self.training and embedding.fits(columns, *tables):
            return embedding.embed(columns, *tables)
        audio = self.audio_emb(columns[..., TEXT + 1 :]).sum(axis=-2)
        return audio + self.text_emb(columns[..., : TEXT + 1])[..., 0, :]

    def advance(
        self, embedded: mx.array, state: TransformerState, pinned: mx.array | None = None
    ) -> tuple[mx.array, TransformerState]:
        """The next embedded columns [B, T, dim] -> hidden z [B, T, dim], which both heads read, and the state.

        The first `pinned` [B] columns stay in view.
        """
        x, state = self.temporal(embedded, state, pinned)
        return self.out_norm(x), state

    def text_logits(self, z: mx.array) -> mx.array:
        """Hidden z [..., dim] -> logits of the next text token [..., text_card]."""
        return plain(self.text_head, z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)

    def columns(self, frames: mx.array) -> mx.array:
        """Frames [B, 17, T] -> columns [B, T + 1, 17]: the initial tokens, then the delayed frames."""
        initial = initial_column(self.config)
        start = mx.broadcast_to(mx.array(initial, frames.dtype)[None, :, None], (frames.shape[0], N_STREAMS, 1))
        return mx.concatenate([start, delay(frames, initial)], axis=2).swapaxes(1, 2)

    def hidden(self, columns: mx.array, pinned: mx.array | None = None) -> mx.array:
        """Whole sequences of columns [B, T, 17] -> z [B, T, dim]; the first `pinned` [B] columns stay in view."""
        return self.out_norm(self.temporal.whole(self.embed(columns), pinned))

    def teacher_forced(self, frames: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Logits of every frame given all frames before it, as in training (reference `forward_train`).

        frames [B, 17, T] -> text logits [B, T, text_card] and mask [B, T], audio logits [B, S, T, card] and mask
        [B, S, T]. The mask is False where a frame's last code lies beyond the sequence, or the token is ZERO.
        """
        slots, _, n_frames = frames.shape
        columns = self.columns(frames)
        z = self.hidden(columns[:, :-1])
        text_logits = self.text_logits(z)

        steps = self.depformer.n_steps
        target = columns[:, 1:].reshape(slots * n_frames, N_STREAMS)
        codes = target[:, AGENT.start : AGENT.start + steps]
        flat = self.depformer.teacher_forced(z.reshape(slots * n_frames, -1), target[:, TEXT], codes)
        by_column = flat.reshape(slots, n_frames, steps, -1).transpose(0, 2, 1, 3)
        # The column after the last would hold its acoustic codes: those logits are not known.
        agent = AGENT.start
        audio_logits = undelay(mx.pad(by_column, [(0, 0), (0, 0), (0, 1), (0, 0)]), agent)
        within = mx.broadcast_to(mx.arange(n_frames + 1) < n_frames, (1, steps, n_frames + 1))
        known = frames[:, agent : agent + steps] >= 0
        return text_logits, frames[:, TEXT] >= 0, audio_logits, known & undelay(within, agent)
