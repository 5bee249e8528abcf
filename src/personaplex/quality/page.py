"""The report as one HTML file: drawn here, in light and dark, with nothing to load from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from personaplex.quality.comparison import STREAMS
from personaplex.quality.report import OVER_TIME, TABLE, Measured, Report

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 280, 62, 14, 14, 46
COLOURS = 8
"""Colours and shapes in `STYLE`; further candidates use them again."""
FLOOR = 1e-7
"""Divergences below it are drawn there: a logarithm has no nought, and rounding says no less."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2430; --soft: #5b6675; --line: #d5dae1; --panel: #f6f8fa;
  --c0: #1f5fa8; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #0e7490; --c5: #be185d; --c6: #854d0e;
  --c7: #475569; --bad: #b91c1c; --good: #166534; }
@media (prefers-color-scheme: dark) {
:root { --back: #12161c; --text: #e3e8ef; --soft: #9aa7b8; --line: #343d49; --panel: #1a2029; --c0: #6fb1ff;
  --c1: #ff9b63; --c2: #62d38a; --c3: #cf9bff; --c4: #4fd0e6; --c5: #ff8fc0; --c6: #e3bd62; --c7: #a9b8cc;
  --bad: #ff8a8a; --good: #7fdb9d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 74rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; } p { margin: .3rem 0 .8rem; max-width: 46rem; } .soft { color: var(--soft); }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
figure { margin: 0; padding: .8rem; background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; }
figcaption p { margin: .1rem 0 .4rem; font-size: .85rem; color: var(--soft); }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--text); }
svg .axis { stroke: var(--line); } svg .tick { fill: var(--soft); } svg .limit { stroke: var(--bad);
  stroke-dasharray: 5 4; } svg .curve { fill: none; stroke-width: 1.8; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td:last-child { text-align: left; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; min-width: 4.5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; margin: .5rem 0; }
.legend svg { width: 14px; height: 14px; display: inline-block; vertical-align: -2px; margin-right: .3rem; }
""" + "".join(f".s{i} {{ stroke: var(--c{i}); }} .m{i} {{ fill: var(--c{i}); }}\n" for i in range(COLOURS))

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Values of one candidate, None where there is none; joined by a line, or marks alone."""

    colour: int
    name: str
    points: Sequence[tuple[float, float | None]]
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, on a logarithmic scale or not, with words at some values."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False
    label: str = ""

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; nothing lies outside."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return min(max((value - low) / (high - low), 0), 1)


def html(report: Report) -> str:
    """The whole page."""
    title = f"Quantisation report: {report.reference}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(_parts(report))
        + "\n</body>\n</html>\n"
    )


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
    yield _legend(report.candidates)
    yield _table(report)
    yield "<h2>Against bits</h2>" + _charts(_against_bits(report))
    yield "<h2>By stream</h2>" + _charts(_by_stream(report))
    yield "<h2>Over time</h2>" + _charts(_over_time(report))
    yield "<h2>Layer by layer</h2>" + _charts([_drift(report)])


def _legend(candidates: Sequence[Measured]) -> str:
    items = (
        f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{_mark(7, 7, i)}</svg>{escape(c.label)}</li>'
        for i, c in enumerate(candidates)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


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
        up = _logarithmic([y for curve in curves for _, y in curve.points] + ([limit.kl] if limit else []), "KL, nats")
        yield _chart(f"{stream}: divergence against bits", "", curves, across, up, limit.kl if limit else None)


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
    yield _chart("Divergence", "Mean KL.", divergence, across, _logarithmic(_values(divergence), "KL, nats"))
    step = _step(1 - min([y for y in _values(same) if y is not None], default=0.0))
    percent = [(1 - i * step, f"{100 * (1 - i * step):g} %") for i in range(6)]
    up = Axis(1 - 5 * step, 1, percent)
    yield _chart("Top-1 agreement", "How often the likeliest token is the same.", same, across, up)
    most = max([y for y in _values(rank) if y is not None], default=1.0)
    step = _step(most - 1)
    up = Axis(1, 1 + 5 * step, [(1 + i * step, f"{1 + i * step:g}") for i in range(6)])
    yield _chart(
        "Rank of the reference's choice",
        "Mean place of the reference's likeliest token among the candidate's; 1 is the first.",
        rank,
        across,
        up if most < 10 else _logarithmic(_values(rank), "", 1.0),
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
        yield _chart(f"{name}: divergence over time", "", curves, across, _logarithmic(_values(curves), "KL, nats"))


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
    return _chart("Drift of the hidden state", about, curves, across, _logarithmic(_values(curves), "relative"))


def _values(curves: Sequence[Curve]) -> list[float | None]:
    return [y for curve in curves for _, y in curve.points]


def _step(span: float) -> float:
    """A round number, five of which are no less than `span`."""
    for power in range(-3, 9):
        for digit in (1, 2, 4):
            if 5 * digit * 10.0**power >= span:
                return float(f"{digit}e{power}")
    return span / 5


def _logarithmic(values: Sequence[float | None], label: str, floor: float = FLOOR) -> Axis:
    """Whole decades around the values."""
    known = [max(value, floor) for value in values if value is not None] or [floor]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 1e-9)
    high = max(high, low + 1)
    step = max(1, round((high - low) / 6))
    ticks = [(10.0**power, f"{10.0**power:g}" if power > -3 else _power(power)) for power in range(low, high + 1, step)]
    return Axis(10.0**low, 10.0**high, ticks, logarithmic=True, label=label)


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _charts(charts: Iterator[str] | Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _chart(title: str, about: str, curves: Sequence[Curve], x: Axis, y: Axis, limit: float | None = None) -> str:
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    end, base = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(point: Point) -> Point:
        return LEFT + across * x.place(point[0]), base - up * y.place(point[1])

    parts = []
    for value, word in y.ticks:
        height = place((x.low, value))[1]
        parts.append(f'<path class="axis" d="M{LEFT} {height:.1f}H{end}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{word}</text>')
    for value, word in x.ticks:
        right = place((value, y.low))[0]
        parts.append(f'<text class="tick" x="{right:.1f}" y="{base + 16}" text-anchor="middle">{escape(word)}</text>')
    parts.append(f'<text class="tick" x="{LEFT + across / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x.label}</text>')
    if y.label:
        parts.append(
            f'<text class="tick" transform="translate(12 {TOP + up / 2}) rotate(-90)" text-anchor="middle">'
            f"{y.label}</text>"
        )
    if limit is not None:
        height = place((x.low, limit))[1]
        parts.append(f'<path class="limit" d="M{LEFT} {height:.1f}H{end}"><title>limit {limit:g}</title></path>')
    if not any(y is not None for curve in curves for _, y in curve.points):
        parts.append(f'<text x="{LEFT + across / 2}" y="{TOP + up / 2}" text-anchor="middle">no such moment</text>')
    for curve in curves:
        parts += _drawn(curve, [(*place((px, py)), py) for px, py in curve.points if py is not None])
    caption = f"<figcaption><h3>{escape(title)}</h3>{f'<p>{escape(about)}</p>' if about else ''}</figcaption>"
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure>{caption}{picture}</figure>"


def _drawn(curve: Curve, points: Sequence[tuple[float, float, float]]) -> Iterator[str]:
    if curve.joined and len(points) > 1:
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        title = f"<title>{escape(curve.name)}</title>"
        yield f'<polyline class="curve s{curve.colour % COLOURS}" points="{line}">{title}</polyline>'
    if curve.marked or len(points) == 1:
        for px, py, value in points:
            title = f"<title>{escape(curve.name)}: {value:.3g}</title>"
            yield _mark(px, py, curve.colour, title)


def _mark(x: float, y: float, colour: int, title: str = "") -> str:
    """A circle, square, diamond or triangle: candidates differ in more than colour."""
    shape = (
        "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "m-3.6 -3.6h7.2v7.2h-7.2z",
        "m0 -5l5 5l-5 5l-5 -5z",
        "m0 -4.6l4.6 8h-9.2z",
    )[colour % 4]
    return f'<path class="m{colour % COLOURS}" d="M{x:.1f} {y:.1f}{shape}">{title}</path>'
