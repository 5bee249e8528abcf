"""Recognisers whose models hear whole utterances: they keep the sound, and say what it was when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from personaplex.cascade.engine import TimedWord, Transcript
from personaplex.errors import EngineError, UsageError

RATE = 16_000
"""What every model here hears."""

LONGEST_SECONDS = 120
"""Sound that is kept at most: a longer utterance is recognised piece by piece."""

SHORTEST_SECONDS = 0.1
"""In less nothing can be said, and some models fail."""


def is_downloaded(repo: str, file: str) -> bool:
    """Whether a Hugging Face repository's file is in the cache of this machine. Asks nobody.

    Ask for the weights: a download that was broken off has left the small files there.
    """
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, file), str)


class WholeUtterance:
    """A `Listening` that has `hear` ([S] -> transcript) recognise what was said."""

    def __init__(self, hear: Callable[[np.ndarray], Transcript]) -> None:
        self._hear: Callable[[np.ndarray], Transcript] | None = hear
        self._kept: list[np.ndarray] = []
        self._n_heard = 0
        self._so_far: list[Transcript] = []

    def push(self, pcm: np.ndarray) -> Transcript | None:
        """Keep float32 [S] at 16 kHz; something is known before the end only of an utterance that is very long."""
        if self._hear is None:
            return None
        self._kept.append(pcm)
        if sum(map(len, self._kept)) < LONGEST_SECONDS * RATE:
            return None
        self._recognise()
        return self._joined()

    def finish(self) -> Transcript:
        """All that was said."""
        self._recognise()
        found = self._joined()
        self.close()
        return found

    def close(self) -> None:
        """Forget the sound."""
        self._hear = None
        self._kept, self._so_far = [], []

    def _recognise(self) -> None:
        pcm, self._kept = np.concatenate([*self._kept, np.zeros(0, np.float32)]), []
        offset, self._n_heard = self._n_heard / RATE, self._n_heard + len(pcm)
        if self._hear is None or len(pcm) < SHORTEST_SECONDS * RATE:
            return
        found = self._hear(pcm)
        words = [TimedWord(word.text, word.start + offset, word.end + offset) for word in found.words]
        self._so_far.append(Transcript(found.text, tuple(words), found.language))

    def _joined(self) -> Transcript:
        return Transcript(
            " ".join(part.text for part in self._so_far if part.text),
            tuple(word for part in self._so_far for word in part.words),
            next((part.language for part in self._so_far if part.language), None),
        )


@contextmanager
def loading(engine: str, model: str, known: str) -> Iterator[None]:
    """Tell whatever goes wrong in a block that loads a model as one EngineError; `known` says what can be named."""
    try:
        yield
    except Exception as error:  # a file that is missing or damaged, no network, no memory: each library's own way
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise EngineError(f"{engine} cannot load the model {model!r}: {reason}; name {known}") from error


def check_language(engine: str, language: str | None, known: Sequence[str]) -> None:
    """Raise UsageError for a language that is not one of `known`; None, for the engine's own guess, always is."""
    if language is not None and language not in known:
        raise UsageError(f"{engine} with this model does not hear {language!r}; it hears {', '.join(sorted(known))}")
