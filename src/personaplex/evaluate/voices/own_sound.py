"""What a voice prompt sounds like: its codes decoded, also where only the sums of their embeddings were kept.

The 7B's voices come as embeddings: at each position one row of each of 17 tables, added up. Text and user are known
(padding and a tone), so what is left is a sum of eight rows, one of each of the agent's tables; and eight rows of two
thousand each are far fewer than 4,096 dimensions can tell apart. So the codes can be found again, and it shows when
they are: they sum to what was kept, to rounding, and no other code comes near.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from personaplex.config import ModelConfig
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.models.streams import AGENT, DELAYS, USER
from personaplex.units import N_CODEBOOKS
from personaplex.voice import Voice

MARGIN = 2.0
"""How many times more, by length, the second best code of any table must leave over: where rows are alike, or much is
left over anyway, it is hardly more."""

_SWEEPS, _TRIES = 30, 4
_RIDGE = 1e-4
"""Of the mean variance: directions in which rows differ by less are taken for rounding."""
_FIRST = 2
"""Position from which on nothing but the voice, padding and the tone is in a column: before it are initial tokens."""


def decode(mimi: Mimi, codes: np.ndarray) -> np.ndarray:
    """Codes [8, F] -> what the model was given of the voice, pcm [1920 F]."""
    return np.array(mimi.decode(mx.array(codes.astype(np.int32))[None])[0])


class CodeFinder:
    """Finds the codes of a model's voices. Its tables are read when the first voice without codes comes."""

    def __init__(self, lm: LanguageModel, config: ModelConfig) -> None:
        self._lm, self._config = lm, config
        self._tables: list[np.ndarray] = []

    def codes(self, voice: Voice) -> np.ndarray | None:
        """The codes [8, F] of a voice prompt; of embeddings those found in them, None where none can be for sure.

        Of V embeddings those of frames 2 to V - 2: the two before share a column with initial tokens, the one after
        with what is not among them.
        """
        if voice.codes is not None:
            return voice.codes.T
        assert voice.embeddings is not None
        columns = self._of_columns(voice.embeddings[_FIRST:])
        if columns is None or columns.shape[1] < 2:
            return None
        # Acoustic codes lie one column later than the semantic one of the same frame.
        delayed = np.array(DELAYS[AGENT]) == 1
        return np.where(delayed[:, None], columns[:, 1:], columns[:, :-1])

    def _of_columns(self, embedded: mx.array) -> np.ndarray | None:
        """Summed embeddings [P, dim] of columns with padding and the tone -> the agent's codes [8, P], or None.

        One table after the other takes the row that leaves least, given the others' rows, until none changes; that is
        tried from several orders. None when for any code another one leaves less than `MARGIN` times as much.
        """
        if not embedded.shape[0]:
            return None
        if not self._tables:
            self._read()
        sums = (_numbers(embedded) - self._known) @ self._whiten
        for attempt in range(_TRIES):
            order = np.random.default_rng(attempt).permutation(N_CODEBOOKS)
            codes, left = _descend(sums, self._tables, order)
            least = np.square(left).sum(axis=1)
            wanted = (left + table[code] for table, code in zip(self._tables, codes, strict=True))
            seconds = (_second(row, table) for row, table in zip(wanted, self._tables, strict=True))
            if all((second >= MARGIN**2 * least).all() for second in seconds):
                return codes
        return None

    def _read(self) -> None:
        """The agent's tables [card, dim], unpacked and whitened, and what all columns have in common [dim].

        Whitened, so that every direction in which rows differ counts, and not only those in which they differ much.
        """
        lm, config = self._lm, self._config
        text = lm.text_emb(mx.array([[config.lm.existing_text_padding_id]]))[0, 0]
        user = lm.audio_emb(mx.array([list(config.sine_codes)]), USER.start - 1)[0].sum(axis=0)
        every = mx.arange(config.lm.card)[:, None]
        raw = [_numbers(lm.audio_emb(every, k)[:, 0]) for k in range(N_CODEBOOKS)]
        means = [table.mean(axis=0) for table in raw]
        centred = [table - mean for table, mean in zip(raw, means, strict=True)]
        self._known = _numbers(text) + _numbers(user) + np.sum(means, axis=0)
        covariance = sum(table.T @ table for table in centred) / (N_CODEBOOKS * config.lm.card)
        ridge = _RIDGE * np.trace(covariance) / len(covariance)
        inverse = np.linalg.inv(covariance.astype(np.float64) + ridge * np.eye(len(covariance)))
        self._whiten = np.linalg.cholesky((inverse + inverse.T) / 2).astype(np.float32)
        self._tables = [table @ self._whiten for table in centred]


def _numbers(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def _distances(wanted: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Squared distances [P, card] of vectors [P, dim] to rows, but for the square of the vector itself."""
    return np.asarray(np.square(table).sum(axis=1) - 2 * wanted @ table.T)


def _second(wanted: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Square of what the second nearest row leaves of each vector [P, dim]: [P]."""
    second = np.partition(_distances(wanted, table), 1, axis=1)[:, 1]
    return np.asarray(second + np.square(wanted).sum(axis=1))


def _descend(sums: np.ndarray, tables: list[np.ndarray], order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [8, P] at which no table alone can do better, and what they leave of the sums [P, dim]."""
    left, rows = sums, [np.zeros_like(sums)] * len(tables)
    codes = np.zeros((len(tables), len(sums)), np.int64) - 1
    for _ in range(_SWEEPS):
        before = codes.copy()
        for k in order:
            without = left + rows[k]
            codes[k] = _distances(without, tables[k]).argmin(axis=1)
            rows[k] = tables[k][codes[k]]
            left = without - rows[k]
        if (codes == before).all():
            break
    return codes, left
