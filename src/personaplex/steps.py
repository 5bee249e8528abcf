"""What a model tells of its steps, frame by frame: how long each took, and how much in doubt its tokens were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

STREAMS = ("text", "semantic", "acoustic")
"""Kinds of tokens that are drawn in a step; the acoustic ones are seven, and told as their mean."""


class StepMeasure(NamedTuple):
    """One step: its wall clock in `ms`, and the entropy, in nats, of what tokens were drawn from.

    The entropies are those of the untempered softmax over the whole vocabulary, so they do not change with the
    sampling. They belong to the tokens drawn in this step: text and semantic code of the next frame, acoustic codes
    of this one.
    """

    ms: float
    text: float
    semantic: float
    acoustic: float


@dataclass(frozen=True)
class StepRecord:
    """Steps of a recording: `at`, in seconds from its start, when each one's frame begins to be heard."""

    at: Sequence[float]
    measures: Sequence[StepMeasure]

    def as_json(self) -> dict[str, list[float | None]]:
        """A column for each number, rounded as far as anybody looks; None where a model computed no number."""
        columns = zip(*self.measures, strict=True) if self.measures else ((),) * len(StepMeasure._fields)
        made = dict(zip(StepMeasure._fields, ([_plain(value) for value in column] for column in columns), strict=True))
        return {"at": [round(at, 3) for at in self.at], **made}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> StepRecord:
        """What `as_json` made. Raises ValueError for anything else."""
        try:
            columns = [[math.nan if v is None else float(v) for v in entry[name]] for name in StepMeasure._fields]
            at = [float(value) for value in entry["at"]]
            if not all(map(math.isfinite, (*at, *columns[0]))):
                raise ValueError("no record of steps: a time is no number")
            return cls(at, [StepMeasure(*row) for row in _rows(columns, len(at))])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no record of steps: {error}") from error


def _rows(columns: Sequence[Sequence[float]], n: int) -> Iterable[tuple[float, ...]]:
    if {len(column) for column in columns} != {n}:
        raise ValueError("no record of steps: its columns are not of one length")
    return zip(*columns, strict=True)


def _plain(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
