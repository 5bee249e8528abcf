"""Charts as SVG: curves of several candidates over linear or logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from personaplex.drawing.style import COLOURS

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 280, 62, 14, 14, 46

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


def round_step(span: float) -> float:
    """A round number, five of which are no less than `span`."""
    for power in range(-3, 9):
        for digit in (1, 2, 4):
            if 5 * digit * 10.0**power >= span:
                return float(f"{digit}e{power}")
    return span / 5


def decades(values: Sequence[float | None], label: str, floor: float) -> Axis:
    """A logarithmic axis of whole decades around the values; what is below `floor` is drawn there."""
    known = [max(value, floor) for value in values if value is not None] or [floor]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 1e-9)
    high = max(high, low + 1)
    step = max(1, round((high - low) / 6))
    ticks = [(10.0**power, f"{10.0**power:g}" if power > -3 else _power(power)) for power in range(low, high + 1, step)]
    return Axis(10.0**low, 10.0**high, ticks, logarithmic=True, label=label)


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def grid(charts: Iterable[str]) -> str:
    """Charts side by side, as many as fit."""
    return f'<div class="charts">{"".join(charts)}</div>'


def legend(names: Sequence[str]) -> str:
    """Whose colour and shape is which."""
    items = (
        f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{mark(7, 7, i)}</svg>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def chart(title: str, about: str, curves: Sequence[Curve], x: Axis, y: Axis, limit: float | None = None) -> str:
    """A figure: curves over two axes, with a dashed line at `limit`. `title` and `about` are text, not HTML."""
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
            yield mark(px, py, curve.colour, title)


def mark(x: float, y: float, colour: int, title: str = "") -> str:
    """A circle, square, diamond or triangle: candidates differ in more than colour."""
    shape = (
        "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "m-3.6 -3.6h7.2v7.2h-7.2z",
        "m0 -5l5 5l-5 5l-5 -5z",
        "m0 -4.6l4.6 8h-9.2z",
    )[colour % 4]
    return f'<path class="m{colour % COLOURS}" d="M{x:.1f} {y:.1f}{shape}">{title}</path>'
