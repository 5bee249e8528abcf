"""Tables of a report: rows with their intervals and goals, turns, and what is known of something."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from personaplex.evaluate.row import Row
from personaplex.report.recorded import Said, words
from personaplex.report.summary import Shown

STYLE = """
td.text { white-space: normal; min-width: 8rem; text-align: left; } td.left, th.left { text-align: left; }
td.what { white-space: normal; min-width: 8.5rem; overflow-wrap: break-word; text-align: left; }
.table { margin-bottom: 1rem; }
td svg.share { width: 120px; height: 16px; } .share .line { stroke: var(--c0); stroke-width: 2; }
.share .goal { stroke: var(--bad); stroke-width: 2; } .share .rail { stroke: var(--line); }
caption { text-align: left; color: var(--soft); padding: 0 0 .3rem; }
"""


def table(head: Sequence[str], body: Iterable[Sequence[str]], caption: str = "") -> str:
    """`head` is text, `<` before it for a column of text; cells are HTML: `<td ...>...</td>`, or what stands in one."""
    cells = "".join(
        f'<th scope="col" class="left">{escape(cell[1:])}</th>'
        if cell[:1] == "<"
        else f'<th scope="col">{escape(cell)}</th>'
        for cell in head
    )
    rows = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in body
    )
    about = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(caption or "table")}"><table>{about}'
        f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def number(value: float, unit: str) -> str:
    """As a person reads it."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "never"
    if unit == "ms":
        return f"{value:.1f} ms" if abs(value) < 100 else f"{value:.0f} ms"
    return f"{value:.3f} {unit}".strip()


def of_rows(rows: Sequence[Row], caption: str) -> str:
    """Value, 95 % interval, how many, and the goal if there is one."""
    has_goals = any(row.goal is not None for row in rows)
    head = ["what", "measured", "95 % interval", "n", *(["goal", "<"] if has_goals else []), "0 to 1"]
    body = []
    for row in rows:
        low, high = row.interval
        interval = "" if math.isnan(low) or math.isnan(high) else f"{number(low, row.unit)} to {number(high, row.unit)}"
        cells = [f'<td class="what">{escape(row.what)}</td>', number(row.value, row.unit), interval, str(row.n)]
        if has_goals:
            goal = "" if row.goal is None else ("≤ " if row.at_most else "≥ ") + number(row.goal, row.unit)
            verdict = {True: '<td class="good left">met</td>', False: '<td class="bad left">missed</td>', None: ""}
            cells += [goal, verdict[row.met]]
        body.append([*cells, _share(row)])
    return table(head, body, caption)


def _share(row: Row) -> str:
    """A share and its interval as a line between 0 and 1; nothing for another number."""
    ends = (row.value, *row.interval)
    if row.unit or not all(0 <= end <= 1 for end in ends):
        return ""
    x, low, high = (4 + 112 * end for end in ends)
    goal = "" if row.goal is None else f'<path class="goal" d="M{4 + 112 * row.goal:.1f} 1v14"/>'
    return (
        '<svg class="share" viewBox="0 0 120 16" aria-hidden="true"><path class="rail" d="M4 8h112M4 4v8M116 4v8"/>'
        f'{goal}<path class="line" d="M{low:.1f} 8H{high:.1f}"/><circle class="m0" cx="{x:.1f}" cy="8" r="4"/></svg>'
    )


def of_turns(shown: Shown) -> str:
    """What happened in a conversation, turn by turn: the time line in words."""
    speech = shown.speech
    said = {"agent": words(shown.recorded.said), "user": words(shown.recorded.heard)}
    latencies = {answer.at: answer.latency for answer in speech.answers}
    body = []
    for i, turn in enumerate(speech.turns):
        following = next((t.start for t in speech.turns[i + 1 :] if t.side == turn.side), math.inf)
        first = not any(t.side == turn.side for t in speech.turns[:i])
        text = _between(said[turn.side], -math.inf if first else turn.start - 0.5, following - 0.5)
        latency = latencies.get(turn.start) if turn.side == "agent" else None
        notes = "; ".join(
            f"{overlap.what} ({overlap.end - overlap.start:.2f} s)"
            for overlap in speech.overlaps
            if overlap.second == turn.side and turn.start <= overlap.start < turn.end
        )
        body.append(
            [
                f"{turn.start:.2f} s",
                f'<td class="left">{turn.side}</td>',
                f"{turn.end - turn.start:.2f} s",
                "" if latency is None else f"{1000 * latency:.0f} ms",
                f'<td class="text">{escape(text) or "–"}</td>',
                f'<td class="text">{escape(notes)}</td>',
            ]
        )
    if not body:
        return '<p class="soft">No speech was found on either side.</p>'
    return table(["begins", "<who", "lasts", "latency", "<said", "<overlap"], body, "Turns")


def _between(said: Sequence[Said], begin: float, end: float) -> str:
    return " ".join(text for at, text in said if begin <= at < end)
