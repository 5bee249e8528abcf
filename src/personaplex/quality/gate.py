"""The short report that a converted model must pass before it is published."""

from __future__ import annotations

from pathlib import Path

from personaplex.checkpoint.card import Quality
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.errors import PersonaPlexError
from personaplex.quality.report import Report, Say, measure, silent, stored
from personaplex.quality.thresholds import Thresholds


def examine(source: str | Path, converted: Path, name: str | None = None, *, say: Say = silent) -> Quality:
    """What the card of a `converted` folder says, and why it should not be published, if so; `name` is its row's.

    Measured beside its `source` on the recording and by the limits of `gate.toml`. Whatever keeps it from being
    measured (too little memory, a source without a tokenizer) is such a reason, and no error: the folder is whole.
    """
    try:
        thresholds = Thresholds.read()
        candidate = stored(converted, ModelFolder(resolve(source)), name)
        report = measure(source, [candidate], [thresholds.audio], thresholds, scratch=converted.parent, say=say)
    except (PersonaPlexError, OSError, RuntimeError, MemoryError) as error:  # MLX's RuntimeError: its device is full
        return Quality(refusals=(f"its quality was not measured: {error}",))
    return Quality(report.markdown(), refusals(report))


def refusals(report: Report) -> tuple[str, ...]:
    """Why the models of a report should not be published; empty when nothing speaks against it."""
    found = []
    for candidate in report.candidates:
        verdict = candidate.verdict
        if verdict.kind == "random":
            return (f"{report.reference} answers as random weights do: {verdict.reasons[0]}",)
        found += [f"{candidate.label}: {reason}" for reason in verdict.reasons]
    return tuple(found)
