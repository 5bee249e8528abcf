"""Numbers that say how far a candidate's predictions are from the reference's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import mlx.core as mx
import numpy as np

from personaplex.engine.sampling import mean_entropy
from personaplex.quality.reading import Piece
from personaplex.text import EPAD
from personaplex.units import N_CODEBOOKS

STREAMS = ("text", "semantic", *(f"acoustic {i}" for i in range(2, N_CODEBOOKS + 1)))
"""What is predicted, in order: text, then the agent's 8 codebooks."""

SPEAKING = 0.05
"""Mean entropy of codes, of the largest there is, beyond which they are more than silence."""

Numbers = dict[str, float | None]
"""Of one stream: `kl` (mean, nats), `kl_p95`, `kl_max`, `top1` (share), `rank` (mean), `rank_p99`; None: no number."""


@dataclass(frozen=True)
class Comparison:
    """N moments of two models, `STREAMS` in the second axis.

    `divergence` [N, 9]: KL divergence of the candidate from the reference, in nats. `agree` [N, 9]: whether the
    likeliest token is the same. `rank` [N, 9]: the place of the reference's likeliest token among the candidate's, 1
    for the first. `drift` [L + 2]: root mean square of the difference between the hidden states relative to that of
    the reference's, after the embedding, each layer and the last norm. Of the reference alone: `padding` [N], its
    probability of saying no word, `word` [N], whether a word is its likeliest text, and `doubt` [N], the mean entropy
    of its codes relative to the largest there is.
    """

    divergence: np.ndarray
    agree: np.ndarray
    rank: np.ndarray
    drift: np.ndarray
    padding: np.ndarray
    word: np.ndarray
    doubt: np.ndarray


def compare(pairs: Iterable[tuple[Piece, Piece]], text_padding: int) -> Comparison:
    """Compare pieces of (reference, candidate); `text_padding` is the token that stands for no word."""
    rows: dict[str, list[np.ndarray]] = {}
    squares: list[np.ndarray] = []
    for reference, candidate in pairs:
        found = _moments(reference, candidate, text_padding)
        mx.eval(found)
        for name, value in found.items():
            (squares if name == "squares" else rows.setdefault(name, [])).append(np.array(value))
    wrong, right = np.sum(squares, axis=0)
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    return Comparison(**joined, drift=np.sqrt(wrong / np.maximum(right, 1e-30)))


def joined(comparisons: list[Comparison]) -> Comparison:
    """Several recordings as one; the drift is the mean, weighted by their moments."""
    weights = [len(c.padding) for c in comparisons]
    drift = np.average([c.drift for c in comparisons], axis=0, weights=weights)
    parts = {
        name: np.concatenate([getattr(c, name) for c in comparisons])
        for name in ("divergence", "agree", "rank", "padding", "word", "doubt")
    }
    return Comparison(**parts, drift=drift)


def _moments(reference: Piece, candidate: Piece, text_padding: int) -> dict[str, mx.array]:
    text, audio = _logits(reference.text[:, None], candidate.text[:, None]), _logits(reference.audio, candidate.audio)
    by_stream = {name: mx.concatenate([text[name], audio[name]], axis=1) for name in text}
    codes = reference.audio.astype(mx.float32)
    sure = mx.softmax(reference.text.astype(mx.float32), axis=-1)
    likeliest = mx.argmax(sure, axis=-1)
    states = reference.layers.astype(mx.float32), candidate.layers.astype(mx.float32)
    wrong, right = mx.square(states[1] - states[0]).sum(axis=(1, 2)), mx.square(states[0]).sum(axis=(1, 2))
    return by_stream | {
        "padding": sure[:, text_padding] + sure[:, EPAD],
        "doubt": mean_entropy(codes) / log(codes.shape[-1]),
        "word": (likeliest != text_padding) & (likeliest != EPAD),
        "squares": mx.stack([wrong, right]),
    }


def _logits(reference: mx.array, candidate: mx.array) -> dict[str, mx.array]:
    """Of logits [T, n, V]: divergence, agree and rank, [T, n] each."""
    reference, candidate = reference.astype(mx.float32), candidate.astype(mx.float32)
    wanted, found = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (reference, candidate))
    choice = mx.argmax(reference, axis=-1, keepdims=True)
    above = candidate > mx.take_along_axis(candidate, choice, axis=-1)
    return {
        # Of equal distributions it is 0; rounding may say a little less.
        "divergence": mx.maximum((mx.exp(wanted) * (wanted - found)).sum(axis=-1), 0),
        "agree": mx.argmax(candidate, axis=-1) == choice.squeeze(-1),
        "rank": 1 + above.sum(axis=-1),
    }


def summary(comparison: Comparison) -> dict[str, Numbers]:
    """Numbers by stream: `text` of all moments, `words` of those where the reference would say one.

    The codebooks, and `acoustic` for all but the first, are of moments that are more than silence, of which a model is
    sure: otherwise one that says little would look good.
    """
    every, speaking = np.ones(len(comparison.word), bool), comparison.doubt > SPEAKING
    return {
        "text": _numbers(comparison, every, slice(0, 1)),
        "words": _numbers(comparison, comparison.word, slice(0, 1)),
        "semantic": _numbers(comparison, speaking, slice(1, 2)),
        "acoustic": _numbers(comparison, speaking, slice(2, None)),
        **{name: _numbers(comparison, speaking, slice(i, i + 1)) for i, name in enumerate(STREAMS) if i > 1},
    }


def _numbers(comparison: Comparison, rows: np.ndarray, streams: slice) -> Numbers:
    if not rows.any():
        return dict.fromkeys(("kl", "kl_p95", "kl_max", "top1", "rank", "rank_p99"))
    divergence, rank = comparison.divergence[rows, streams], comparison.rank[rows, streams]
    return {
        "kl": plain(divergence.mean()),
        "kl_p95": plain(np.quantile(divergence, 0.95)),
        "kl_max": plain(divergence.max()),
        "top1": plain(comparison.agree[rows, streams].mean()),
        "rank": plain(rank.mean()),
        "rank_p99": plain(np.quantile(rank, 0.99)),
    }


def plain(value: float) -> float | None:
    """A number as JSON has it: six digits, None for what is no number."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
