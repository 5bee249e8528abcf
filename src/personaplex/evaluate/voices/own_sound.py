"""What a voice prompt sounds like: its codes decoded, also where only the sums of their embeddings were kept.

The 7B's voices come as embeddings: at each position one row of each of 17 tables, added up. Text and user are known
(padding and a tone), so what is left is a sum of eight rows, one of each of the agent's tables; and eight rows of two
thousand each are far fewer than 4,096 dimensions can tell apart. So the codes can be found again, and it is certain
when they are: what they sum to is then what was kept, to rounding.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from personaplex.config import ModelConfig
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.models.streams import AGENT, DELAYS, TEXT, USER
from personaplex.units import N_CODEBOOKS
from personaplex.voice import Voice

TOLERANCE = 0.2
"""Share of a sum that may be left over, by length: rounding leaves 0.01, packing 0.1, one wrong code of eight 0.5."""

_SWEEPS, _TRIES = 30, 4
_FIRST = 2
"""Position from which on nothing but the voice, padding and the tone is in a column: before it are initial tokens."""


def own_codes(lm: LanguageModel, config: ModelConfig, voice: Voice) -> np.ndarray | None:
    """The codes [8, F] of a voice prompt; of embeddings those found in them, None where none can be for sure."""
    if voice.codes is not None:
        return voice.codes.T
    assert voice.embeddings is not None
    columns = recover(lm, config, voice.embeddings[_FIRST:])
    if columns is None or columns.shape[1] < 2:
        return None
    # Acoustic codes lie one column later than the semantic one of the same frame.
    delayed = np.array(DELAYS[AGENT]) == 1
    return np.where(delayed[:, None], columns[:, 1:], columns[:, :-1])


def decode(mimi: Mimi, codes: np.ndarray) -> np.ndarray:
    """Codes [8, F] -> what the model was given of the voice, pcm [1920 F]."""
    return np.array(mimi.decode(mx.array(codes.astype(np.int32))[None])[0])


def recover(lm: LanguageModel, config: ModelConfig, embedded: mx.array) -> np.ndarray | None:
    """Summed embeddings [P, dim] of columns with padding and the tone -> the agent's codes [8, P], or None.

    One table after the other takes the row that leaves least, given the others' rows, until none changes; that is
    tried from several orders. None when more than `TOLERANCE` of any sum is left over.
    """
    if not embedded.shape[0]:
        return None
    known = lm.text_emb(mx.array([[config.lm.existing_text_padding_id]]))[:, TEXT]
    sine = mx.array([list(config.sine_codes)])
    known = known + lm.audio_emb(sine, USER.start - 1).sum(axis=1)
    sums = embedded.astype(mx.float32) - known.astype(mx.float32)
    tables = [_table(lm, k) for k in range(N_CODEBOOKS)]
    halves = [mx.square(table).sum(axis=1) / 2 for table in tables]
    lengths = mx.linalg.norm(sums, axis=1)
    for attempt in range(_TRIES):
        order = [int(k) for k in np.random.default_rng(attempt).permutation(N_CODEBOOKS)]
        codes, left = _descend(sums, tables, halves, order)
        if bool((mx.linalg.norm(left, axis=1) <= TOLERANCE * lengths).all().item()):
            return codes
    return None


def _table(lm: LanguageModel, codebook: int) -> mx.array:
    """The agent's table [card, dim] of a codebook, unpacked where it is packed."""
    rows = lm.audio_emb(mx.arange(lm.config.card)[:, None], codebook)
    return rows[:, 0].astype(mx.float32)


def _descend(
    sums: mx.array, tables: list[mx.array], halves: list[mx.array], order: list[int]
) -> tuple[np.ndarray, mx.array]:
    """Codes [8, P] at which no table alone can do better, and what they leave of the sums [P, dim]."""
    left = sums
    rows = [mx.zeros_like(sums)] * len(tables)
    codes = np.zeros((len(tables), sums.shape[0]), np.int64) - 1
    for _ in range(_SWEEPS):
        before = codes.copy()
        for k in order:
            without = left + rows[k]
            # |without - row|^2 / 2, less what all rows share.
            best = mx.argmin(halves[k] - without @ tables[k].T, axis=1)
            rows[k] = tables[k][best]
            left = without - rows[k]
            mx.eval(best, left)
            codes[k] = np.array(best)
        if (codes == before).all():
            break
    return codes, left
