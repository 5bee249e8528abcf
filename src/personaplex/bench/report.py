"""The one report format: a table for people, then one line of JSON for machines, the last on stdout."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count, groupby
from pathlib import Path

import numpy as np

from personaplex.bench.machine import commit, describe_machine, mlx_version, name, root
from personaplex.files import whole_file
from personaplex.units import FRAME_SECONDS


@dataclass(frozen=True)
class Row:
    """One measured thing: its name, milliseconds of each repetition, and whatever else belongs beside them.

    Without any milliseconds it is what was not measured, and `extra` says why.
    """

    name: str
    ms: list[float]
    extra: dict[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Name, percentiles, share of repetitions longer than a frame, and the extras."""
        if not self.ms:
            return {"name": self.name, **self.extra}
        p50, p95, p99 = (round(float(np.percentile(self.ms, p)), 3) for p in (50, 95, 99))
        over = float(np.mean(np.array(self.ms) > 1000 * FRAME_SECONDS))
        times = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": round(max(self.ms), 3)}
        return {"name": self.name, **times, "n": len(self.ms), "over_80_ms": round(over, 4), **self.extra}


def measure(
    step: Callable[[], object], frames: int, warm_up: int = 5, between: Callable[[], object] | None = None
) -> list[float]:
    """Milliseconds of each of `frames` calls; `step` must evaluate what it computes. What is done `between` is not
    counted.
    """
    ms = []
    for _ in range(warm_up + frames):
        began = time.perf_counter()
        step()
        ms.append(1000 * (time.perf_counter() - began))
        if between is not None:
            between()
    return ms[warm_up:]


def as_report(bench: str, rows: list[Row], possible: dict[str, float] | None = None) -> dict[str, object]:
    """Everything about one run; `possible` is what the machine was measured to do at most."""
    about: dict[str, object] = {"bench": bench, "machine": describe_machine(), "mlx": mlx_version(), "commit": commit()}
    if possible:
        about["possible"] = possible
    return {**about, "rows": [row.as_json() for row in rows]}


def as_words(row: Row) -> str:
    """One row in a line, for who waits for the others."""
    name, *rest = row.as_json().items()
    return f"{name[1]}: " + ", ".join(f"{key} {value}" for key, value in rest)


def as_table(report: dict[str, object], theory: str) -> str:
    """The report as a person reads it."""
    rows: list[dict[str, object]] = report["rows"]  # type: ignore[assignment]
    tables = [_table(list(group)) for _, group in groupby(rows, lambda row: row.get("bench"))]
    machine: dict[str, object] = report["machine"]  # type: ignore[assignment]
    possible: dict[str, float] = report.get("possible", {})  # type: ignore[assignment]
    about = ", ".join(f"{key} {value}" for key, value in (machine | possible).items() if value is not None)
    return "\n".join([theory.strip(), "", f"{about}, mlx {report['mlx']}, commit {report['commit']}", *tables])


def _table(rows: list[dict[str, object]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *[[str(row.get(column, "")) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)
    return "\n".join(["", *lines])


def kept(report: dict[str, object]) -> Path:
    """Write the report as a line into `benchmarks/`, under the names of machine and day; what is there stays."""
    folder, bench = root() / "benchmarks", report["bench"]
    folder.mkdir(exist_ok=True)
    stem = f"{name()}-{datetime.now(tz=UTC):%Y-%m-%d}" + ("" if bench == "all" else f"-{bench}")
    tries = (folder / f"{stem}{'' if n == 1 else f'-{n}'}.json" for n in count(1))
    path = next(path for path in tries if not path.exists())
    with whole_file(path) as temporary:
        temporary.write_text(as_line(report) + "\n", encoding="utf-8")
    return path


def as_line(report: dict[str, object]) -> str:
    """The report as one line of JSON."""
    return json.dumps(report)
