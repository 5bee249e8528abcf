"""One conversation on one time line: turns, words, both sides' waveforms and spectrograms, entropy and step times.

A second is 100 pixels wide, a frame 8; the drawing scrolls sideways in its box, the lanes' names stay beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby

import numpy as np

from personaplex.drawing.png import WIDEST, address, ink
from personaplex.report.recorded import Mark, Said, words
from personaplex.report.spectrogram import COLUMN_SAMPLES, row_of, spectrogram
from personaplex.report.summary import FRAME_MS, Shown
from personaplex.steps import STREAMS
from personaplex.units import SAMPLE_RATE

SECOND = 100
"""Pixels."""
NAMES_WIDTH, AFTER = 88, 80
WAVE_COLUMN = 480
"""Samples of one point of a waveform."""
CHARACTER = 6.9
"""Pixels that one takes on average at 12 px; a wrong guess moves a word to another line, no more."""
SHOWN_MARKS = ("interrupted", "degenerate", "dropped", "reset", "say", "stop", "persona", "voice")
_OVERLAPS = {
    ("user", True): "user interrupts", ("agent", True): "agent begins early",
    ("user", False): "user says within", ("agent", False): "agent says within",
}  # fmt: skip

STYLE = """
.timeline { display: flex; } .timeline svg { flex: none; max-width: none; }
.timeline .scroll { flex: 1; min-width: 0; overflow-x: auto; }
.timeline .scroll:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
.agent { fill: var(--c0); } .user { fill: var(--c1); } .timeline .said { font-size: 12px; }
.timeline .second { stroke: var(--line); stroke-width: .6; } .timeline .link { stroke: var(--soft); fill: none; }
.timeline .overlap { fill: var(--c3); opacity: .16; } .timeline .event { stroke: var(--bad); stroke-dasharray: 2 3; }
.timeline .told { fill: var(--bad); } .timeline .step { fill: var(--c7); } .timeline .late { fill: var(--bad); }
.timeline .curve { stroke-width: 1.5; } .timeline .d1 { stroke-dasharray: 6 3; }
.timeline .d2 { stroke-dasharray: 1.5 2.5; }
.timeline .title { font-weight: 600; }
@media (prefers-color-scheme: dark) { .timeline image { filter: invert(1); } }
"""


@dataclass
class _Sheet:
    """What is drawn so far: `parts` on the time line, `names` beside it, both down to `height`."""

    seconds: float
    parts: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    height: float = 0.0

    def lane(self, name: str, height: float, kind: str = "", gap: float = 10, rise: float = -12) -> float:
        """Room for another lane: where it begins. Its name is written `rise` above that."""
        top = self.height + gap
        self.height = top + height
        if name:
            self.names.append(f'<text class="title {kind}" x="0" y="{top - rise:.0f}">{escape(name)}</text>')
        return top

    def scale(self, word: str, y: float) -> None:
        """A word at the time line's left edge."""
        self.names.append(f'<text class="tick" x="{NAMES_WIDTH - 6}" y="{y + 4:.1f}" text-anchor="end">{word}</text>')


def timeline(shown: Shown, most_seconds: float) -> str:
    """The first `most_seconds` of a conversation as HTML."""
    recorded, seconds = shown.recorded, min(shown.recorded.seconds, most_seconds)
    sheet = _Sheet(seconds)
    _axis(sheet)
    _turns(sheet, shown)
    both = [Mark(overlap.start, _OVERLAPS[overlap.second, overlap.outlasts]) for overlap in shown.speech.overlaps]
    told = [mark for mark in recorded.marks if mark.what in SHOWN_MARKS]
    _marks(sheet, sorted(mark for mark in (*told, *both) if mark.at < seconds))
    top = sheet.height
    for kind, pcm, said in (("agent", recorded.agent, recorded.said), ("user", recorded.user, recorded.heard)):
        _words(sheet, kind, [one for one in _noted_at_once(words(said)) if one.at < seconds])
        _sound(sheet, kind, pcm[: round(seconds * SAMPLE_RATE)])
    _overlaps(sheet, shown, top + 10)
    _steps(sheet, shown)
    width, height = math.ceil(seconds * SECOND) + AFTER, math.ceil(sheet.height) + 8
    lines = "".join(f'<path class="second" d="M{i * SECOND} 22V{height}"/>' for i in range(math.floor(seconds) + 1))
    name = escape(recorded.name)
    speech = shown.speech
    n_user = sum(turn.side == "user" for turn in speech.turns)
    label = (
        f"Time line of {name}: {seconds:.1f} seconds, {n_user} turns of the user, {len(speech.turns) - n_user} of the "
        f"agent, {len(speech.overlaps)} overlaps. The table below says the same in words."
    )
    names = _svg(NAMES_WIDTH, height, "".join(sheet.names), 'aria-hidden="true"')
    drawing = _svg(width, height, lines + "".join(sheet.parts), f'role="img" aria-label="{label}"')
    return (
        f'<div class="timeline">{names}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="Time line of {name}, scrolls sideways">{drawing}</div></div>'
    )


def _svg(width: int, height: int, inside: str, about: str) -> str:
    size = f'viewBox="0 0 {width} {height}" style="width:{width}px;height:{height}px"'
    return f"<svg {size} {about}>{inside}</svg>"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _axis(sheet: _Sheet) -> None:
    top = sheet.lane("", 14, gap=0)
    for i in range(math.floor(sheet.seconds) + 1):
        sheet.parts.append(f'<text class="tick" x="{i * SECOND + 3}" y="{top + 12}">{clock(i)}</text>')


def _turns(sheet: _Sheet, shown: Shown) -> None:
    top = sheet.lane("turns", 44)
    heights = {"user": top, "agent": top + 34}
    for side, height in heights.items():
        sheet.scale(side, height + 5)
        spans = shown.speech.user if side == "user" else shown.speech.agent
        for begin, end in spans:
            if begin < sheet.seconds:
                width = (min(end, sheet.seconds) - begin) * SECOND
                title = f"<title>{side} speaks from {begin:.2f} to {end:.2f} s</title>"
                box = f'x="{begin * SECOND:.1f}" y="{height}" width="{width:.1f}" height="10" rx="3"'
                sheet.parts.append(f'<rect class="{side}" {box}>{title}</rect>')
    for at, latency in shown.speech.answers:
        if at < sheet.seconds:
            x, before = at * SECOND, (at - latency) * SECOND
            sheet.parts.append(f'<path class="link" d="M{before:.1f} {top + 10}L{x:.1f} {top + 34}"/>')
            words = f"{latency:+.2f} s" if latency < 0 else f"{latency:.2f} s"
            sheet.parts.append(f'<text x="{max(x, before) + 5:.1f}" y="{top + 26}">{words}</text>')


def _marks(sheet: _Sheet, marks: Sequence[Mark]) -> None:
    if not marks:
        return
    rows = list(_side_by_side([Said(mark.at, mark.what) for mark in marks], 3))
    top = sheet.lane("events", 15 * (1 + max(rows)))
    for mark, row in zip(marks, rows, strict=True):
        x, y = mark.at * SECOND, top + 11 + 15 * row
        title = f"<title>{escape(mark.what)} at {mark.at:.2f} s {escape(mark.more)}</title>"
        sheet.parts.append(f'<path class="event" d="M{x:.1f} {top}V9999"/>')
        sheet.parts.append(f'<text class="told" x="{x + 3:.1f}" y="{y:.1f}">{escape(mark.what)}{title}</text>')


def _noted_at_once(said: Sequence[Said]) -> list[Said]:
    """Words of one moment as one text, such as a question of which only the beginning is known: not over each other."""
    return [Said(at, " ".join(one.text for one in own)) for at, own in groupby(said, key=lambda one: one.at)]


def _words(sheet: _Sheet, kind: str, said: Sequence[Said]) -> None:
    if not said:
        sheet.lane("", 0, gap=6)
        return
    rows = list(_side_by_side(said, 4))
    top = sheet.lane("", 15 * (1 + max(rows)), gap=14)
    for (at, text), row in zip(said, rows, strict=True):
        place = f'x="{at * SECOND:.1f}" y="{top + 11 + 15 * row:.1f}"'
        sheet.parts.append(f'<text class="said {kind}" {place}>{escape(text)}<title>{at:.2f} s</title></text>')


def _side_by_side(said: Sequence[Said], most: int) -> Iterator[int]:
    """The row of each text, so that none is written over another as long as there are rows."""
    ends = [-math.inf] * most
    for at, text in said:
        row = next((i for i, end in enumerate(ends) if end <= at * SECOND), ends.index(min(ends)))
        ends[row] = at * SECOND + len(text) * CHARACTER + 6
        yield row


def _sound(sheet: _Sheet, kind: str, pcm: np.ndarray) -> None:
    top = sheet.lane(kind, 44, kind, gap=2)
    peak = max(float(np.abs(pcm).max(initial=0)), 0.01)
    sheet.parts.append(f'<path class="{kind}" d="{_envelope(pcm / peak, top + 22, 21)}"/>')
    top = sheet.lane("", 72, gap=4)
    picture = spectrogram(pcm)
    for start in range(0, picture.shape[1], WIDEST):
        piece = picture[:, start : start + WIDEST]
        x, width = start * COLUMN_SAMPLES * SECOND / SAMPLE_RATE, piece.shape[1] * COLUMN_SAMPLES * SECOND / SAMPLE_RATE
        place = f'x="{x:.1f}" y="{top}" width="{width:.1f}" height="72" preserveAspectRatio="none"'
        sheet.parts.append(f'<image {place} href="{address(ink(piece))}"/>')
    for hertz, word in ((200, "200 Hz"), (1000, "1 kHz"), (4000, "4 kHz")):
        sheet.scale(word, top + 72 * (1 - row_of(hertz)))


def _envelope(pcm: np.ndarray, middle: float, reach: float) -> str:
    """The outline of a waveform: highest samples there, lowest ones back."""
    if not len(pcm):
        return ""
    padded = np.pad(pcm, (0, -len(pcm) % WAVE_COLUMN)).reshape(-1, WAVE_COLUMN)
    step = WAVE_COLUMN * SECOND / SAMPLE_RATE
    there = [(i * step, middle - reach * min(1.0, v)) for i, v in enumerate(np.maximum(padded.max(axis=1), 0.02))]
    back = [(i * step, middle - reach * max(-1.0, v)) for i, v in enumerate(np.minimum(padded.min(axis=1), -0.02))]
    return "M" + "L".join(f"{x:g} {y:.1f}" for x, y in [*there, *reversed(back)]) + "Z"


def _overlaps(sheet: _Sheet, shown: Shown, top: float) -> None:
    for overlap in shown.speech.overlaps:
        if overlap.start < sheet.seconds:
            width = (min(overlap.end, sheet.seconds) - overlap.start) * SECOND
            title = f"<title>{overlap.what}, {overlap.start:.2f} to {overlap.end:.2f} s</title>"
            box = (
                f'x="{overlap.start * SECOND:.1f}" y="{top:.1f}" width="{width:.1f}" height="{sheet.height - top:.1f}"'
            )
            sheet.parts.append(f'<rect class="overlap" {box}>{title}</rect>')


def _steps(sheet: _Sheet, shown: Shown) -> None:
    """Entropy and step time of every frame, where they were recorded."""
    steps = shown.recorded.steps
    if steps is None or not steps.measures:
        return
    known = [(at, measure) for at, measure in zip(steps.at, steps.measures, strict=True) if at < sheet.seconds]
    top, tall = sheet.lane("entropy", 76, gap=34, rise=13), 76
    values = np.array([measure[1:] for _, measure in known], np.float64).reshape(-1, len(STREAMS))
    most = max(1.0, math.ceil(np.nanmax(values))) if np.isfinite(values).any() else 1.0
    for nats in (0.0, most):
        height = top + tall * (1 - nats / most)
        sheet.scale(f"{nats:g} nats" if nats else "0", height)
        sheet.parts.append(f'<path class="axis" d="M0 {height:.1f}H{sheet.seconds * SECOND:.1f}"/>')
    for i, name in enumerate(STREAMS):
        line = " ".join(
            f"{at * SECOND + 4:.1f},{top + tall * (1 - value / most):.1f}"
            for (at, _), value in zip(known, values[:, i], strict=True)
            if math.isfinite(value)
        )
        title = f"<title>entropy of the {name} tokens, nats</title>"
        sheet.parts.append(f'<polyline class="curve s{i + 2} d{i}" points="{line}">{title}</polyline>')
        height = top + 20 + 15 * i
        sheet.names.append(f'<path class="curve s{i + 2} d{i}" d="M0 {height - 4}h16"/>')
        sheet.names.append(f'<text class="tick" x="20" y="{height}">{name}</text>')
    _step_times(sheet, [(at, measure.ms) for at, measure in known])


def _step_times(sheet: _Sheet, known: Sequence[tuple[float, float]]) -> None:
    top, tall = sheet.lane("step time", 60, gap=30, rise=8), 60
    most = min(max(1.25 * FRAME_MS, 1.1 * float(np.quantile([ms for _, ms in known], 0.95))), 3 * FRAME_MS)
    for at, ms in known:
        height = tall * min(1.0, ms / most)
        box = f'x="{at * SECOND + 1:.1f}" y="{top + tall - height:.1f}" width="6" height="{height:.1f}"'
        kind = "late" if ms > FRAME_MS else "step"
        sheet.parts.append(f'<rect class="{kind}" {box}><title>{ms:.1f} ms at {at:.2f} s</title></rect>')
    limit = top + tall * (1 - FRAME_MS / most)
    sheet.parts.append(f'<path class="limit" d="M0 {limit:.1f}H{sheet.seconds * SECOND:.1f}"/>')
    sheet.scale("80 ms", limit)
    sheet.scale("0", top + tall)
