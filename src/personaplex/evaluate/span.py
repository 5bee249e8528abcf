"""A stretch of a recording, such as speech of one side."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Seconds from `start` to `end`."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start
