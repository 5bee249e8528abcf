"""A sweep as a picture: SVG in light and dark, with nothing to load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 64, 110, 48, 56

STYLE = """
svg { background: #fff; font: 13px system-ui, sans-serif; fill: #1d2430; }
.axis { stroke: #d5dae1; } .limit { stroke: #b91c1c; stroke-dasharray: 6 5; } .curve { fill: none; stroke-width: 2; }
.soft { fill: #5b6675; } .c0 { stroke: #1f5fa8; } .c1 { stroke: #c2410c; } .c2 { stroke: #15803d; }
.c3 { stroke: #7e22ce; } .c4 { stroke: #0f766e; } .c5 { stroke: #a16207; }
.m3 { fill: #7e22ce; } .m4 { fill: #0f766e; } .m5 { fill: #a16207; }
.m0 { fill: #1f5fa8; } .m1 { fill: #c2410c; } .m2 { fill: #15803d; } .bad { fill: #b91c1c; }
@media (prefers-color-scheme: dark) {
svg { background: #12161c; fill: #e3e8ef; } .axis { stroke: #343d49; } .limit { stroke: #ff8a8a; }
.soft { fill: #9aa7b8; } .c0 { stroke: #6fb1ff; } .c1 { stroke: #ff9b63; } .c2 { stroke: #62d38a; }
.c3 { stroke: #c69bff; } .c4 { stroke: #5ad1c4; } .c5 { stroke: #e2b94b; }
.m3 { fill: #c69bff; } .m4 { fill: #5ad1c4; } .m5 { fill: #e2b94b; }
.m0 { fill: #6fb1ff; } .m1 { fill: #ff9b63; } .m2 { fill: #62d38a; } .bad { fill: #ff8a8a; } }
"""


def svg(title: str, across: str, up: str, curves: Mapping[str, Sequence[tuple[float, float]]], limit: float) -> str:
    """Up to six named curves of (x, y) over a line at `limit`; y is logarithmic."""
    xs = sorted({x for points in curves.values() for x, _ in points})
    ys = [y for points in curves.values() for _, y in points] + [limit]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)

    def right(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((xs.index(x) + 0.5) / len(xs))

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(y) - low) / (high - low)

    parts = [f'<text x="{LEFT}" y="26" font-size="16" font-weight="600">{escape(title)}</text>']
    for power in range(low, high + 1):
        y = down(10**power)
        parts.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
    for x in xs:
        parts.append(
            f'<text class="soft" x="{right(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x:g}</text>'
        )
    parts.append(f'<path class="limit" d="M{LEFT} {down(limit):.1f}H{WIDTH - RIGHT}"/>')
    names = [(down(limit), f"{limit:g} ms", "bad")]
    for i, (name, points) in enumerate(curves.items()):
        line = " ".join(f"{right(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve c{i}" points="{line}"/>')
        parts += [f'<circle class="m{i}" cx="{right(x):.1f}" cy="{down(y):.1f}" r="4"/>' for x, y in points]
        names.append((down(points[-1][1]), escape(name), f"m{i}"))
    lowest = 0.0
    for y, name, colour in sorted(names):  # from the top, none on another
        lowest = max(y, lowest + 15)
        parts.append(f'<text class="{colour}" x="{WIDTH - RIGHT + 8}" y="{lowest + 4:.1f}">{name}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="soft" x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text class="soft" x="16" y="{TOP - 6}">{escape(up)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )
