"""A look inside each step: for those who port, quantise or debug a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from personaplex.engine.generator import Step
from personaplex.text import Tokenizer


@dataclass(frozen=True)
class StepDiagnosis:
    """One step. Entropies are in nats, of the untempered softmax; `top_text` is (piece, probability), best first.

    The distributions are those of the tokens drawn in the step: text and first code of the next frame, the other codes
    of this one.
    """

    frame: int
    tokens: list[int]
    hidden_mean: float
    hidden_std: float
    hidden_min: float
    hidden_max: float
    top_text: list[tuple[str, float]]
    text_entropy: float
    top_codes: list[int]
    code_entropies: list[float]


def diagnose_step(frame: int, step: Step, tokenizer: Tokenizer, top: int) -> StepDiagnosis:
    """Read slot 0 of a step."""
    hidden = np.array(step.hidden[0].astype(mx.float32))
    text, codes = _log_softmax(step.text_logits[0]), _log_softmax(step.audio_logits[0])
    best = np.argsort(-text)[:top]
    return StepDiagnosis(
        frame,
        np.array(step.tokens[0]).tolist(),
        float(hidden.mean()),
        float(hidden.std()),
        float(hidden.min()),
        float(hidden.max()),
        [(tokenizer.piece(int(token)), float(np.exp(text[token]))) for token in best],
        float(_entropy(text)),
        codes.argmax(axis=-1).tolist(),
        _entropy(codes).tolist(),
    )


def _log_softmax(logits: mx.array) -> np.ndarray:
    logits = logits.astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _entropy(log_probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(-(np.exp(log_probabilities) * log_probabilities).sum(axis=-1))
