"""The short report that a converted model must pass before it is published."""

from __future__ import annotations

from pathlib import Path

from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.quality.report import Report, Say, measure, stored
from personaplex.quality.thresholds import Thresholds


def examine(
    source: str | Path,
    converted: Path,
    name: str | None = None,
    *,
    scratch: Path | None = None,
    say: Say = lambda _: None,
) -> Report:
    """Measure a `converted` folder beside its `source` on the recording of `gate.toml`, in a table as `name`.

    Raises BackendError when the source does not fit into memory: then nothing was measured.
    """
    thresholds = Thresholds.read()
    candidate = stored(converted, ModelFolder(resolve(source)), name)
    return measure(source, [candidate], [thresholds.audio], thresholds, scratch=scratch, say=say)


def refusal(report: Report) -> str | None:
    """Why the models of a report should not be published, in one line; None when nothing speaks against it."""
    for candidate in report.candidates:
        why = "; ".join(candidate.verdict.reasons)
        if candidate.verdict.kind == "random":
            return f"{report.reference} answers as random weights do: {why}"
        if candidate.verdict.kind == "beyond":
            return f"{candidate.name} is beyond the limits for publishing: {why}"
    return None
