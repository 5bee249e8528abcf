"""What tells speakers apart: an embedding and its measure of likeness, by name, from a module or from an ONNX file."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from personaplex.errors import EngineError, UsageError
from personaplex.speech.formants import N_FORMANTS, formants
from personaplex.speech.identity import N_BANDS, embedding, pitches


@runtime_checkable
class SpeakerEmbedding(Protocol):
    """Speech to a vector, and how alike two of them are: the more the greater, on whatever scale."""

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Speech [S] float32 at 24 kHz -> vector [D]."""

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """How alike two vectors are."""


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two vectors, -1 to 1; 0 with a vector of no length."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def _by_spreads(differences: list[float], spreads: tuple[float, ...]) -> float:
    """1 / (1 + distance): 1 is the same, and 1/2 as far apart as two sentences of one voice usually are."""
    squares = [(difference / spread) ** 2 for difference, spread in zip(differences, spreads, strict=True)]
    return 1 / (1 + float(np.sqrt(np.mean(squares))))


class Simple:
    """Pitch, and mean and deviation of 32 mel bands (`speech.identity.embedding`): plain, but nothing to install."""

    SPREADS = (0.07, 0.34, 0.24)
    """Of pitch in octaves, mean and deviation of log10 mel energies: root mean square between sentences of one voice,
    over the 18 voices of `speech.AGENTS`. Between voices they are some 0.7, 0.7 and 0.3."""

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Speech [S] -> [65]."""
        return embedding(pcm)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """From 0 to 1."""
        parts = np.split(np.abs(a - b), [1, 1 + N_BANDS])
        return _by_spreads([float(np.sqrt(np.mean(np.square(part)))) for part in parts], self.SPREADS)


class Statistics:
    """Pitch, how much it varies, and three formants: what a phonetician would measure first."""

    SPREADS = (0.07, 1.0, 0.20, 0.29, 0.13)
    """Of pitch (octaves), its variation (semitones) and the formants (octaves), measured as those of `Simple`."""

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Speech [S] -> [5]: log2 of the pitch, quartiles apart in semitones, log2 of the formants; 0 for unvoiced."""
        voiced = np.log2(pitches(pcm))
        if not len(voiced):
            return np.zeros(2 + N_FORMANTS)
        low, middle, high = np.percentile(voiced, [25, 50, 75])
        return np.array([middle, 12 * (high - low), *np.log2(np.maximum(formants(pcm), 1))])

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """From 0 to 1."""
        return _by_spreads([float(x) for x in np.abs(a - b)], self.SPREADS)


class ByCosine:
    """A function from speech to a vector, compared by cosine."""

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray]) -> None:
        self._embed = embed

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Speech [S] -> [D]."""
        return self._embed(pcm)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        """From -1 to 1."""
        return cosine(a, b)


EMBEDDINGS: dict[str, Callable[[], SpeakerEmbedding]] = {"simple": Simple, "statistics": Statistics}
"""Those that need nothing beside this package."""


def find_embedding(choice: str) -> SpeakerEmbedding:
    """By a name of `EMBEDDINGS`, an ONNX file (`onnx.py` says of what kind), or `module:attribute`.

    The attribute is a SpeakerEmbedding, a class of them, or a function from speech [S] at 24 kHz to a vector, which is
    compared by cosine. Raises UsageError for what is none of these, EngineError for what cannot be loaded.
    """
    if choice in EMBEDDINGS:
        return EMBEDDINGS[choice]()
    if Path(choice).suffix == ".onnx":
        from personaplex.evaluate.voices.onnx import OnnxEmbedding

        return ByCosine(OnnxEmbedding(Path(choice).expanduser()))
    module, colon, attribute = choice.partition(":")
    if not colon or not module or not attribute:
        raise UsageError(
            f"unknown embedding {choice!r}; there are {', '.join(EMBEDDINGS)}, FILE.onnx and module:attribute"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
        made = found() if isinstance(found, type) else found
    except Exception as error:  # somebody else's module may raise anything
        raise EngineError(f"the embedding {choice} cannot be loaded: {error}") from error
    if isinstance(made, SpeakerEmbedding):
        return made
    if not callable(made):
        raise UsageError(f"the embedding {choice} is {type(made).__name__}; expected what turns speech into a vector")
    return ByCosine(made)


def embedded(embedding: SpeakerEmbedding, pcm: np.ndarray) -> np.ndarray:
    """The vector [D] of speech [S]. Raises EngineError for an embedding that fails, or gives no vector of numbers."""
    try:
        vector = np.asarray(embedding(pcm), np.float64)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"the embedding failed: {error}") from error
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise EngineError(f"the embedding gave {list(vector.shape)} numbers; expected a vector of finite ones")
    return vector
