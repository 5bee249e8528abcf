"""What `quantisation-report` wrote as JSON, read back as far as a page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STREAMS = ("text", "words", "semantic", *(f"acoustic {i}" for i in range(2, 9)))
"""What that report tells apart: text, text where a word is due, and eight codebooks."""


@dataclass(frozen=True)
class Candidate:
    """One model beside the reference: mean KL divergence in nats by stream, None where there was no such moment."""

    label: str
    bits: float
    verdict: str
    kl: Mapping[str, float | None]
    top1: Mapping[str, float | None]


@dataclass(frozen=True)
class Quantised:
    """Candidates beside `reference`, over `seconds` of sound."""

    name: str
    reference: str
    seconds: float
    candidates: Sequence[Candidate]

    @classmethod
    def from_json(cls, name: str, entry: Mapping[str, Any]) -> Quantised:
        """Raises KeyError, TypeError or ValueError for what that report does not write."""
        return cls(name, str(entry["reference"]), float(entry["seconds"]), [_candidate(c) for c in entry["candidates"]])

    def as_json(self) -> dict[str, Any]:
        """What a report keeps of it."""
        candidates = [{**vars(c), "kl": dict(c.kl), "top1": dict(c.top1)} for c in self.candidates]
        return {"type": "quantisation", "item": self.name, "reference": self.reference, "candidates": candidates}


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    name, bits = str(entry["name"]), int(entry["kv_bits"])
    label = name if bits == 16 else f"{name}, {bits}-bit keys and values"
    streams = {stream: entry["streams"][stream] for stream in STREAMS}

    def numbers(what: str) -> dict[str, float | None]:
        return {stream: None if of[what] is None else float(of[what]) for stream, of in streams.items()}

    return Candidate(label, float(entry["bits_per_weight"]), str(entry["verdict"]), numbers("kl"), numbers("top1"))
