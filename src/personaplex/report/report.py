"""A report: everything it was made from, as one `Result` for machines; `page` draws it for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import Row
from personaplex.report.quantised import Quantised
from personaplex.report.recorded import Recorded
from personaplex.report.sources import Sources
from personaplex.report.speech import find_speech
from personaplex.report.summary import Shown, rows, signs_of

KIND = "report"


@dataclass(frozen=True)
class Report:
    """`about` what a model was asked, if one was run; `failures` are what could not be read or answered."""

    about: Mapping[str, Any]
    shown: Sequence[Shown]
    results: Sequence[tuple[str, Result]]
    quantised: Sequence[Quantised]
    failures: Sequence[Failure]

    @classmethod
    def of(cls, sources: Sources, about: Mapping[str, Any]) -> Report:
        """Find speech in every conversation, and keep the rest as it is."""
        shown = [show(recorded) for recorded in sources.conversations]
        return cls(about, shown, sources.results, sources.quantised, sources.failures)

    @property
    def rows(self) -> list[Row]:
        """Rows of all conversations together."""
        return rows(self.shown)

    def result(self) -> Result:
        """For machines, and to be compared: an evaluation's rows and values have its kind before them."""
        about = {**self.about, "conversations": len(self.shown), "seconds": sum(s.recorded.seconds for s in self.shown)}
        made, items = self.rows, [one.as_json() for one in self.shown]
        failures = list(self.failures)
        for name, result in self.results:
            head = f"{result.kind}: "
            made += [dataclasses.replace(row, what=head + row.what) for row in result.rows]
            kept = {"type": "evaluation", "item": name, "kind": result.kind, "about": dict(result.about)}
            items += [kept, *(_renamed(item, head) for item in result.items)]
            failures += result.failures
        items += [one.as_json() for one in self.quantised]
        return Result(KIND, about, made, items, failures)


def show(recorded: Recorded) -> Shown:
    """A conversation and what is found in it."""
    return Shown(recorded, find_speech(recorded.user, recorded.agent), signs_of(recorded))


def _renamed(item: Mapping[str, Any], head: str) -> dict[str, Any]:
    """An evaluation's item, found by the rows' new names."""
    values = item.get("values")
    if not isinstance(values, Mapping):
        return dict(item)
    return {**item, "item": f"{head}{item.get('item')}", "values": {head + name: own for name, own in values.items()}}
