"""The pages' look, in light and dark, and the frame around what they say."""

from __future__ import annotations

from html import escape

COLOURS = 8
"""Colours and shapes in `STYLE`; further candidates use them again."""

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


def page(title: str, body: str, style: str = STYLE) -> str:
    """A whole page: `body` is HTML, `title` is not; nothing is loaded from anywhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + body
        + "\n</body>\n</html>\n"
    )
