"""The report as one HTML file that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from personaplex.drawing.chart import Axis, Curve, chart, decades, grid, legend, round_step
from personaplex.drawing.style import STYLE, page
from personaplex.evaluate.result import Failure, Result
from personaplex.report import answers, tables, timeline
from personaplex.report.about import facts, settings
from personaplex.report.quantised import STREAMS, Quantised
from personaplex.report.report import Report
from personaplex.report.summary import FRAME_MS, Shown
from personaplex.steps import STREAMS as KINDS

MOST_DRAWN_SECONDS = 600.0
"""Of each conversation so much is drawn: ten minutes are three megabytes of page. All of it is measured."""

MOST_QUOTED = 600
"""Characters of the agent's text that are shown at once; more are folded away."""

FLOOR_KL, FLOOR_MS = 1e-7, 0.1

MORE_STYLE = (
    timeline.STYLE
    + tables.STYLE
    + """
section { margin-top: 2.5rem; border-top: 1px solid var(--line); } section h2 { margin-top: 1rem; }
dl { display: flex; flex-wrap: wrap; gap: .15rem 1.6rem; font-size: .9rem; margin: .5rem 0; }
dl div { display: flex; gap: .5rem; min-width: 0; } dt { color: var(--soft); } dd { margin: 0; }
h1, h2, p, li, dd { overflow-wrap: anywhere; }
.notes { padding-left: 1.2rem; margin: .3rem 0 .8rem; font-size: .9rem; }
blockquote { margin: .5rem 0; padding-left: .8rem; border-left: 3px solid var(--c0); max-width: 46rem;
  overflow-wrap: anywhere; }
.panel { padding: .8rem; background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  margin: .8rem 0; }
"""
)


def html(report: Report, most_seconds: float = MOST_DRAWN_SECONDS) -> str:
    """The whole page."""
    models = {str(name) for _, result in report.results if (name := result.about.get("model"))}
    name = report.about.get("model") or (models.pop() if len(models) == 1 else None)
    return page(
        f"PersonaPlex report: {name}" if name else "PersonaPlex report",
        "\n".join(_parts(report, most_seconds)),
        STYLE + MORE_STYLE,
    )


def _parts(report: Report, most_seconds: float) -> Iterator[str]:
    counts = (
        (len(report.shown), "conversation"),
        (len(report.results), "evaluation"),
        (len(report.quantised), "quantisation report"),
    )
    yield f"<p>{', '.join(f'{n} {what}' + 's' * (n != 1) for n, what in counts if n)}.</p>"
    yield _facts(report.about)
    yield _failures(report.failures, "Could not be read")
    if report.shown:
        yield "<section><h2>All conversations</h2>"
        yield tables.of_rows(report.rows, "Medians, but for shares")
        yield (
            '<p class="soft">Speech is found by sound, to 32 ms. Latency counts from the user’s last sound to the '
            "agent’s first, negative when the agent began before. Overlap, step times and entropy (of the untempered "
            "logits, in nats) are counted once a conversation, by its median or mean."
            "</p>"
        )
        charts = list(_charts(report.shown))
        if charts:
            yield legend([one.recorded.name for one in report.shown]) + grid(charts)
        yield "</section>"
    for one in report.shown:
        yield f"<section>{''.join(_conversation(one, most_seconds))}</section>"
    for name, result in report.results:
        yield f"<section>{''.join(_evaluation(name, result))}</section>"
    for one_of in report.quantised:
        yield f"<section>{''.join(_quantised(one_of))}</section>"


def _facts(about: Mapping[str, Any]) -> str:
    known = facts(settings(about))
    if not known:
        return ""
    return f"<dl>{''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in known)}</dl>"


def _failures(failures: Sequence[Failure], title: str) -> str:
    if not failures:
        return ""
    body = [[f'<td class="text">{escape(f.item)}</td>', f'<td class="text">{escape(f.reason)}</td>'] for f in failures]
    heading = f'<h2 class="bad">{title}: {len(failures)}</h2>'
    return heading + tables.table(["<what", "<why"], body, "They are in no other number than how many were measured")


def _notes(lines: Sequence[str], kind: str, title: str) -> str:
    if not lines:
        return ""
    return f'<p class="{kind}">{title}</p><ul class="notes">{"".join(f"<li>{escape(one)}</li>" for one in lines)}</ul>'


def _conversation(shown: Shown, most_seconds: float) -> Iterator[str]:
    recorded = shown.recorded
    yield f"<h2>{escape(recorded.name)}</h2>"
    yield f'<p class="soft">{recorded.seconds:.1f} s, from {escape(recorded.source)}.</p>'
    yield _notes(recorded.doubts, "bad", "Look at this first:")
    yield _notes([sign.reason for sign in shown.signs], "bad", "The agent’s side shows signs of degenerate speech:")
    yield _facts(recorded.about)
    yield _notes(recorded.lacks, "soft", "Not in this recording:")
    if recorded.text:
        quoted = f"<blockquote>{escape(recorded.text)}</blockquote>"
        is_long = len(recorded.text) > MOST_QUOTED
        yield f"<details><summary>What the agent said</summary>{quoted}</details>" if is_long else quoted
    if recorded.seconds > most_seconds:
        yield f'<p class="soft">Drawn are the first {most_seconds:g} s; measured is all of it.</p>'
    yield f'<div class="panel">{timeline.timeline(shown, most_seconds)}</div>'
    yield tables.of_turns(shown)


def _charts(shown: Sequence[Shown]) -> Iterator[str]:
    """What all conversations show beside each other: latencies, step times, entropies."""
    latencies = [[answer.latency for answer in one.speech.answers] for one in shown]
    if any(latencies):
        yield _latencies(shown, latencies)
    times = [[] if one.recorded.steps is None else [m.ms for m in one.recorded.steps.measures] for one in shown]
    if any(times):
        curves = [
            Curve(i, one.recorded.name, _percentiles(ms), marked=False)
            for i, (one, ms) in enumerate(zip(shown, times, strict=True))
        ]
        up = decades([y for curve in curves for _, y in curve.points] + [FRAME_MS], "ms", FLOOR_MS)
        about = "A step at each percentile; the dashed line is the 80 ms that it may take in a live conversation."
        yield chart("Step times", about, curves, _PERCENT, up, FRAME_MS)
    for i, kind in enumerate(KINDS):
        found = [_entropies(one, i) for one in shown]
        if any(found):
            curves = [
                Curve(j, one.recorded.name, _percentiles(e), marked=False)
                for j, (one, e) in enumerate(zip(shown, found, strict=True))
            ]
            most = max(value for own in found for value in own)
            step = round_step(most)
            up = Axis(0, 5 * step, [(j * step, f"{j * step:g}") for j in range(6)], label="nats")
            yield chart(f"Entropy of {kind} tokens", "A frame at each percentile.", curves, _PERCENT, up)


_PERCENT = Axis(0, 100, [(float(p), str(p)) for p in range(0, 101, 20)], label="percentile")


def _percentiles(values: Sequence[float]) -> list[tuple[float, float | None]]:
    if not values:
        return []
    percents = [float(p) for p in range(0, 100, 2)] + [99.0, 100.0]
    return list(zip(percents, (float(v) for v in np.percentile(values, percents)), strict=True))


def _entropies(shown: Shown, kind: int) -> list[float]:
    steps = shown.recorded.steps
    return [] if steps is None else [m[1 + kind] for m in steps.measures if math.isfinite(m[1 + kind])]


def _latencies(shown: Sequence[Shown], latencies: Sequence[Sequence[float]]) -> str:
    values = [value for own in latencies for value in own]
    most = max(len(own) for own in latencies)
    low, high = min(0.0, *values), max(0.0, *values)
    step = round_step(max(high - low, 0.1))
    first = math.floor(low / step)
    up = Axis(
        first * step, (first + 6) * step, [(j * step, f"{j * step:g}") for j in range(first, first + 7)], label="s"
    )
    every = max(1, math.ceil(most / 10))
    ticks = [(float(i + 1), str(i + 1)) for i in range(0, most, every)]
    across = Axis(0.5, most + 0.5, ticks, label="answer in its conversation")
    curves = [
        Curve(i, one.recorded.name, [(float(j), value) for j, value in enumerate(own, 1)], joined=False)
        for i, (one, own) in enumerate(zip(shown, latencies, strict=True))
    ]
    return chart("Answer latencies", "Below 0 the agent began before the user had ended.", curves, across, up)


def _evaluation(name: str, result: Result) -> Iterator[str]:
    yield f"<h2>{escape(result.kind)}: {escape(name)}</h2>"
    yield answers.verdict(result)
    yield _notes(list(_controls(result)), "bad", "What must be worse, and is not told from the real thing:")
    yield _facts(result.about)
    yield tables.of_rows(result.rows, f"Evaluation: {result.kind}") if result.rows else "<p>It has no rows.</p>"
    yield answers.of_answers(result)
    yield _failures(result.failures, "Could not be measured")


def _controls(result: Result) -> Iterator[str]:
    """Every control that a measure does not find: with it that measure tells nothing."""
    controls = result.about.get("controls")
    for control in controls if isinstance(controls, list | tuple) else ():
        if isinstance(control, Mapping) and control.get("held") is False:
            yield f"{control.get('control')}, by {control.get('measure')}"


def _quantised(one: Quantised) -> Iterator[str]:
    yield f"<h2>Fewer bits: {escape(one.name)}</h2>"
    yield (
        f"<p>KL divergence from {escape(one.reference)} over {one.seconds:.1f} s, in nats: 0 is no difference. Its own "
        "report says how it was measured.</p>"
    )
    body = [
        [escape(c.label), f"{c.bits:.2f}", *(_kl(c.kl[stream]) for stream in STREAMS), escape(c.verdict)]
        for c in one.candidates
    ]
    yield legend([c.label for c in one.candidates])
    yield tables.table(
        ["weights", "bits each", *(f"{stream} KL" for stream in STREAMS), "<verdict"], body, "KL by stream"
    )
    short = [(float(i), name if i < 2 else str(i - 1)) for i, name in enumerate(STREAMS)]
    across = Axis(-0.5, len(STREAMS) - 0.5, short, label="text, words, codebook 1 (semantic), codebooks 2 to 8")
    curves = [Curve(i, c.label, [(j, c.kl[s]) for j, s in enumerate(STREAMS)]) for i, c in enumerate(one.candidates)]
    up = decades([y for curve in curves for _, y in curve.points], "KL, nats", FLOOR_KL)
    yield grid([chart("KL per codebook", "Mean over all moments of its kind.", curves, across, up)])


def _kl(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
