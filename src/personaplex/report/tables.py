"""Tables of a report: rows with their intervals and goals, turns, and what is known of something."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from personaplex.evaluate.row import Row
from personaplex.evaluate.span import Span
from personaplex.report.recorded import MATCH_SECONDS, Said, words
from personaplex.report.speech import Side, Turn
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
    """What happened in a conversation, turn by turn: the time line in words.

    What was said within the other's turn has a row of its own.
    """
    speech = shown.speech
    rows = sorted([*speech.turns, *speech.within], key=lambda turn: turn.start)
    spans: dict[Side, Sequence[Span]] = {"agent": speech.agent, "user": speech.user}
    texts = {
        **_said_in([row for row in rows if row.side == "agent"], spans["agent"], words(shown.recorded.said)),
        **_said_in([row for row in rows if row.side == "user"], spans["user"], words(shown.recorded.heard)),
    }
    within = set(speech.within)
    latencies = {answer.at: answer.latency for answer in speech.answers}
    body = []
    for turn in rows:
        other = "user" if turn.side == "agent" else "agent"
        who = f"{turn.side}, in the {other}’s turn" if turn in within else turn.side
        latency = latencies.get(turn.start) if turn.side == "agent" and turn not in within else None
        notes = "; ".join(
            f"{overlap.what} ({overlap.end - overlap.start:.2f} s)"
            for overlap in speech.overlaps
            if overlap.start < turn.end and turn.start < overlap.end
        )
        body.append(
            [
                f"{turn.start:.2f} s",
                f'<td class="left">{who}</td>',
                f"{turn.end - turn.start:.2f} s",
                "" if latency is None else f"{1000 * latency:.0f} ms",
                f'<td class="text">{escape(texts[turn]) or "–"}</td>',
                f'<td class="text">{escape(notes)}</td>',
            ]
        )
    if not body:
        return '<p class="soft">No speech was found on either side.</p>'
    return table(["begins", "<who", "lasts", "latency", "<said", "<overlap"], body, "Turns")


def _said_in(rows: Sequence[Turn], spans: Sequence[Span], said: Sequence[Said]) -> dict[Turn, str]:
    """The words of each row of one side: those noted in its sound, or nearest to it."""
    found: dict[Turn, list[str]] = {row: [] for row in rows}
    if not rows:
        return {}
    for at, text in said:
        span = min(spans, key=lambda one: (_distance(at, one), not one.start <= at < one.end))
        found[next(row for row in rows if row.start <= span.start and span.end <= row.end)].append(text)
    return {row: " ".join(own) for row, own in found.items()}


def _distance(at: float, span: Span) -> float:
    """Seconds from where a word was noted to a sound that it may be in: a text comes up to so much before its sound."""
    return max(0.0, span.start - MATCH_SECONDS - at, at - span.end)
