"""How much of its codebooks a codec uses: entropy, perplexity, and the share of entries that occur at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from personaplex.evaluate.row import Row
from personaplex.evaluate.statistics import jackknife_interval


class CodebookUse(NamedTuple):
    """Of one codebook: `entropy` in bits a frame, of at most log2(entries); 2 to the entropy is the perplexity."""

    entropy: float
    used: float

    @property
    def perplexity(self) -> float:
        """As many entries, used equally often, would have the same entropy."""
        return float(2**self.entropy)


def use_of(counts: np.ndarray) -> CodebookUse:
    """From how often each entry occurs [bins]; nothing at all has no entropy."""
    share = counts[counts > 0] / max(1, counts.sum())
    return CodebookUse(float(-(share * np.log2(share)).sum()) + 0.0, float((counts > 0).mean()))


class Tally:
    """Counts of every code, recording by recording."""

    def __init__(self, n_codebooks: int, n_bins: int) -> None:
        self._counts: list[np.ndarray] = []
        self._shape = (n_codebooks, n_bins)

    def add(self, codes: np.ndarray) -> None:
        """Codes [K, T] of one recording."""
        n_codebooks, n_bins = self._shape
        rows = [np.bincount(codes[k], minlength=n_bins) for k in range(n_codebooks)]
        self._counts.append(np.stack(rows).astype(np.uint32))

    @property
    def n_frames(self) -> int:
        """Frames counted. Fewer than there are entries cannot use them all, nor reach their entropy."""
        return int(sum(int(counts[0].sum()) for counts in self._counts))

    def uses(self) -> list[CodebookUse]:
        """Of every codebook, over all recordings."""
        return [use_of(counts) for counts in self._total()]

    def rows(self) -> list[Row]:
        """Entropy and share of entries used, by codebook, with intervals over the recordings."""
        total, made, n = self._total(), [], len(self._counts)
        for k, counts in enumerate(total):
            use = use_of(counts)
            without = [use_of(counts - own[k]) for own in self._counts]
            entropies, shares = ([getattr(use, field) for use in without] for field in CodebookUse._fields)
            most = np.log2(len(counts))
            name = f"codebook {k + 1}"
            made.append(
                Row(
                    f"{name}: entropy (bits of {most:g})",
                    use.entropy,
                    _within(jackknife_interval(use.entropy, entropies), float(most)),
                    n,
                    unit="bits",
                )
            )
            made.append(
                Row(f"{name}: share of entries used", use.used, _within(jackknife_interval(use.used, shares), 1), n)
            )
        return made

    def _total(self) -> np.ndarray:
        total = np.zeros(self._shape, np.int64)
        for counts in self._counts:
            total += counts
        return total


def _within(interval: Sequence[float], most: float) -> tuple[float, float]:
    low, high = (float(np.clip(end, 0, most)) for end in interval)  # NaN stays NaN
    return low, high
