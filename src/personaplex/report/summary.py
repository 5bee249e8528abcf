"""The numbers of a report: what each conversation shows, counted, with intervals over conversations.

A conversation is the unit of what lasts (overlap, step times, entropy): moments of one are alike, so a thousand frames
are not a thousand answers; each counts with its median or mean. Each row's numbers are kept by conversation (`values`
of its item), for paired comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personaplex.errors import AudioError
from personaplex.evaluate import degeneracy
from personaplex.evaluate.row import Row
from personaplex.evaluate.statistics import Share, median_interval, quantile
from personaplex.report.recorded import Recorded
from personaplex.report.speech import Speech
from personaplex.steps import STREAMS
from personaplex.units import FRAME_SECONDS

FRAME_MS = 1000 * FRAME_SECONDS


@dataclass(frozen=True)
class Shown:
    """A conversation and what was found in it: speech, and signs that the agent's is none."""

    recorded: Recorded
    speech: Speech
    signs: Sequence[degeneracy.Sign]

    def values(self) -> dict[str, list[float]]:
        """This conversation's numbers, by the row they are counted in."""
        speech, steps = self.speech, self.recorded.steps
        has_both = not any(lack.startswith("the user's side") for lack in self.recorded.lacks)
        found: dict[str, list[float]] = {}
        if has_both:
            found["answer latency"] = [1000 * answer.latency for answer in speech.answers]
            found["user turns answered"] = [1.0] * len(speech.answers) + [0.0] * speech.unanswered
            found["answers begun early"] = [float(answer.latency < 0) for answer in speech.answers]
            found["agent silent after interruption"] = [1000 * seconds for seconds in speech.stops]
            found["speech overlapped"] = [] if math.isnan(speech.overlapped) else [speech.overlapped]
        found["conversations with signs of degenerate speech"] = [float(bool(self.signs))]
        if steps is not None and steps.measures:
            columns = np.array(steps.measures, np.float64)
            found["step time"] = [float(np.median(columns[:, 0]))]
            found["steps over 80 ms"] = [float(np.mean(columns[:, 0] > FRAME_MS))]
            for name, column in zip(STREAMS, columns.T[1:], strict=True):
                known = column[np.isfinite(column)]
                found[f"{name} entropy"] = [float(known.mean())] if len(known) else []
        return found

    def as_json(self) -> dict[str, Any]:
        """All that is known of it but the sound."""
        recorded, speech = self.recorded, self.speech
        rounded = [(t.side, round(t.start, 3), round(t.end, 3)) for t in speech.turns]
        return {
            "type": "conversation",
            "item": recorded.name,
            "source": recorded.source,
            "about": dict(recorded.about),
            "seconds": round(recorded.seconds, 3),
            "text": recorded.text,
            "turns": [{"side": side, "begin": begin, "end": end} for side, begin, end in rounded],
            "within": [{"side": t.side, "begin": round(t.start, 3), "end": round(t.end, 3)} for t in speech.within],
            "answers": [{"at": round(a.at, 3), "latency_ms": round(1000 * a.latency, 1)} for a in speech.answers],
            "overlaps": [
                {"begin": round(o.start, 3), "end": round(o.end, 3), "second": o.second, "outlasts": o.outlasts}
                for o in speech.overlaps
            ],
            "unanswered": speech.unanswered,
            "signs": [{"kind": sign.kind, "reason": sign.reason} for sign in self.signs],
            "lacks": list(recorded.lacks),
            "doubts": list(recorded.doubts),
            "steps": None if recorded.steps is None else recorded.steps.as_json(),
            "values": self.values(),
        }


def signs_of(recorded: Recorded) -> list[degeneracy.Sign]:
    """Signs of degenerate speech on the agent's side; none where it has no sound at all."""
    try:
        found = degeneracy.measure(recorded.agent, codes=recorded.codes, text=recorded.text)
    except AudioError:
        return []
    return degeneracy.signs(found)


_SHARES = (
    "user turns answered",
    "answers begun early",
    "conversations with signs of degenerate speech",
)
_MEDIANS = {
    "answer latency": "ms",
    "agent silent after interruption": "ms",
    "speech overlapped": "",
    "step time": "ms",
    "steps over 80 ms": "",
    **{f"{name} entropy": "nats" for name in STREAMS},
}


def rows(shown: Sequence[Shown]) -> list[Row]:
    """The rows of all conversations together: shares, and medians; what nothing was measured of is left out."""
    by_row: dict[str, list[float]] = {}
    for one in shown:
        for name, values in one.values().items():
            by_row.setdefault(name, []).extend(values)
    made = []
    for name, values in by_row.items():
        if not values:
            continue
        if name in _SHARES:
            counted = Share.of(value == 1 for value in values)
            made.append(Row(name, counted.value, counted.interval, counted.n))
        else:
            at_most = name in ("step time", "steps over 80 ms", "agent silent after interruption")
            middle, ends = quantile(values, 0.5), median_interval(values)
            made.append(Row(name, middle, ends, len(values), None, at_most, _MEDIANS[name]))
    return made
