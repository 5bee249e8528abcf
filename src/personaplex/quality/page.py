"""The report as one HTML file: drawn here, in light and dark, with nothing to load from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from personaplex.drawing.chart import Axis, Curve, chart, decades, grid, legend, round_step
from personaplex.drawing.style import page
from personaplex.quality.comparison import STREAMS
from personaplex.quality.report import OVER_TIME, TABLE, Report

FLOOR = 1e-7
"""Divergences below it are drawn there: a logarithm has no nought, and rounding says no less."""


def html(report: Report) -> str:
    """The whole page."""
    return page(f"Quantisation report: {report.reference}", "\n".join(_parts(report)))


def _parts(report: Report) -> Iterator[str]:
    names = ", ".join(escape(Path(name).name) for name in report.audio)
    yield (
        f"<p>The reference talked with {names} ({report.seconds:.1f} s with the silence after it). Then it and each "
        "candidate read what had been said, the same tokens, and predicted every next one. KL divergence is that of "
        "the candidate from the reference, in nats at temperature 1: 0 is no difference. Top-1 is how often both find "
        'the same token likeliest.</p><p class="soft">“Words” is text where the reference would say one: most of the '
        "time it is sure to say none. Codebooks are counted where it says more than silence. Dashed lines are "
        "the limits for publishing.</p>"
    )
    if any(c.verdict.kind == "random" for c in report.candidates):
        yield (
            '<p class="bad">The reference answers as random weights do (mean probability of saying no word: '
            f"{report.padding}). These numbers say nothing about a trained model.</p>"
        )
    yield legend([c.label for c in report.candidates])
    yield _table(report)
    yield "<h2>Against bits</h2>" + grid(_against_bits(report))
    yield "<h2>By stream</h2>" + grid(_by_stream(report))
    yield "<h2>Over time</h2>" + grid(_over_time(report))
    yield "<h2>Layer by layer</h2>" + grid([_drift(report)])


def _table(report: Report) -> str:
    head, *rows = report.rows()
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = []
    for row, c in zip(rows, report.candidates, strict=True):
        *values, verdict = (escape(cell) for cell in row)
        kind = "good" if c.verdict.kind == "measured" else "bad"
        why = escape("; ".join(c.verdict.reasons))
        said = f'<td class="{kind}" title="{why}">{verdict}</td>'
        body.append("<tr>" + "".join(f"<td>{value}</td>" for value in values) + said + "</tr>")
    reasons = "".join(
        f'<p class="soft">{escape(c.label)}: {escape("; ".join(c.verdict.reasons))}.</p>'
        for c in report.candidates
        if c.verdict.kind == "beyond"
    )
    return f'<div class="table"><table><tr>{cells}</tr>{"".join(body)}</table></div>{reasons}'


def _against_bits(report: Report) -> Iterator[str]:
    """One chart per kind of token: each candidate a mark at its bits per weight."""
    bits = [c.bits for c in report.candidates]
    low, high = math.floor(min(bits)) - 0.5, math.ceil(max(bits)) + 0.5
    ticks = [(float(b), str(b)) for b in range(math.ceil(low), math.floor(high) + 1) if b % 2 == 0 or high - low < 4]
    across = Axis(low, high, ticks, label="bits per weight, scales included")
    for stream in TABLE:
        curves = [
            Curve(i, c.label, [(c.bits, c.numbers[stream]["kl"])], joined=False)
            for i, c in enumerate(report.candidates)
        ]
        limit = report.thresholds.limits.get(stream)
        up = decades(
            [y for curve in curves for _, y in curve.points] + ([limit.kl] if limit else []), "KL, nats", FLOOR
        )
        yield chart(f"{stream}: divergence against bits", "", curves, across, up, limit.kl if limit else None)


def _by_stream(report: Report) -> Iterator[str]:
    streams = ("text", "words", *STREAMS[1:])
    short = [(float(i), name if i < 2 else str(i - 1)) for i, name in enumerate(streams)]
    across = Axis(-0.5, len(streams) - 0.5, short, label="text, words, codebook 1 (semantic), codebooks 2 to 8")

    def curves(what: str) -> list[Curve]:
        return [
            Curve(i, c.label, [(j, c.numbers[name][what]) for j, name in enumerate(streams)])
            for i, c in enumerate(report.candidates)
        ]

    divergence, same, rank = curves("kl"), curves("top1"), curves("rank")
    yield chart("Divergence", "Mean KL.", divergence, across, decades(_values(divergence), "KL, nats", FLOOR))
    step = round_step(1 - min([y for y in _values(same) if y is not None], default=0.0))
    percent = [(1 - i * step, f"{100 * (1 - i * step):g} %") for i in range(6)]
    up = Axis(1 - 5 * step, 1, percent)
    yield chart("Top-1 agreement", "How often the likeliest token is the same.", same, across, up)
    most = max([y for y in _values(rank) if y is not None], default=1.0)
    step = round_step(most - 1)
    up = Axis(1, 1 + 5 * step, [(1 + i * step, f"{1 + i * step:g}") for i in range(6)])
    yield chart(
        "Rank of the reference's choice",
        "Mean place of the reference's likeliest token among the candidate's; 1 is the first.",
        rank,
        across,
        up if most < 10 else decades(_values(rank), "", 1.0),
    )


def _over_time(report: Report) -> Iterator[str]:
    step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600, 1 << 30) if report.seconds / s <= 8)
    ticks = [(float(t), str(t)) for t in range(0, math.floor(report.seconds) + 1, step)]
    across = Axis(0, report.seconds, ticks, label="seconds")
    for name, which in OVER_TIME.items():
        curves = []
        for i, c in enumerate(report.candidates):
            values = c.over_time(which)
            at = [(j + 0.5) / len(values) * report.seconds for j in range(len(values))]
            curves.append(Curve(i, c.label, list(zip(at, values, strict=True)), marked=False))
        yield chart(f"{name}: divergence over time", "", curves, across, decades(_values(curves), "KL, nats", FLOOR))


def _drift(report: Report) -> str:
    n = len(report.candidates[0].comparison.drift)
    step = max(1, round(n / 10))
    names = ["in", *(str(i) for i in range(1, n - 1)), "out"]
    shown = [i for i in range(n) if i in (0, n - 1) or (i % step == 0 and i < n - 1 - step / 2)]
    across = Axis(-0.5, n - 0.5, [(float(i), names[i]) for i in shown], label="embedding, layers, last norm")
    curves = [
        Curve(i, c.label, [(j, float(d) if math.isfinite(d) else None) for j, d in enumerate(c.comparison.drift)])
        for i, c in enumerate(report.candidates)
    ]
    about = "Root mean square of the difference between the hidden states, relative to the reference's."
    return chart("Drift of the hidden state", about, curves, across, decades(_values(curves), "relative", FLOOR))


def _values(curves: Sequence[Curve]) -> list[float | None]:
    return [y for curve in curves for _, y in curve.points]
