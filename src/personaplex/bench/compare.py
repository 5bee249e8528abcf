"""Two reports of one benchmark side by side: how a run stands to an earlier one, and on which machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from personaplex.errors import UsageError

Report = dict[str, Any]

_MEASURED = frozenset(
    {
        "p50_ms", "p95_ms", "p99_ms", "max_ms", "n", "over_80_ms", "floor_ms", "achieved", "gb_per_s", "read_mb",
        "gflop", "peak_gib", "read_gib", "planned_gib", "kernels", "operations_by", "compiled", "skipped", "seconds",
        "prompts_mb", "logits_off", "logits_off_rms", "bundled_logits_off", "bundled_logits_off_rms",
    }
)  # fmt: skip
"""What is not part of a row's name: rows that differ in these alone are the same measurement, done again."""


def read_report(path: Path) -> Report:
    """The last report in a file of JSON lines, or of a command's whole output. Raises UsageError."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        report = json.loads(lines[-1])
        if not isinstance(report["rows"], list) or not isinstance(report["machine"], dict):
            raise TypeError
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} holds no report: expected the JSON line that `personaplex bench` prints") from error
    return dict(report)


def key(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What a row measures."""
    return tuple(sorted((name, str(value)) for name, value in row.items() if name not in _MEASURED))


def comparison(now: Report, before: Report) -> list[str]:
    """Lines for people: p50 and p99 of each row against the earlier one's, then how the machines differ."""
    earlier = {key(row): row for row in before["rows"] if "p50_ms" in row}
    lines = [f"against commit {before.get('commit')}, mlx {before.get('mlx')} (below 1: faster now)"]
    for row in now["rows"]:
        was = earlier.pop(key(row), None)
        if "p50_ms" not in row:
            continue
        if was is None:
            lines.append(f"  {_words(row)}: not measured then")
            continue
        both = ("p50_ms", "p99_ms")
        ratios = (f"{name[:3]} {row[name]} / {was[name]} = {row[name] / was[name]:.2f}" for name in both)
        lines.append(f"  {_words(row)}: {', '.join(ratios)}")
    lines += [f"  {_words(row)}: not measured now" for row in earlier.values()]
    return [*lines, _machines(now, before)]


def _words(row: dict[str, Any]) -> str:
    named = sorted(key(row), key=lambda pair: pair[0] != "name")
    return ", ".join(value if name == "name" else f"{name} {value}" for name, value in named)


def _machines(now: Report, before: Report) -> str:
    ours, theirs = now["machine"], before["machine"]
    differ = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if not differ:
        return "the same machine"
    words = ", ".join(f"{name} {theirs.get(name)} then and {ours.get(name)} now" for name in differ)
    return f"another machine: {words}"
