"""Every recording through the codec, through Opus and through the codec damaged on purpose; then the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from personaplex.audio import rms
from personaplex.errors import AudioError, PersonaPlexError
from personaplex.evaluate.codec.coders import OPUS_LOWEST, MimiCoder, halved, opus, shuffled
from personaplex.evaluate.codec.measures import MEASURES, TELLING, Delay, Measure, aligned, delay_of
from personaplex.evaluate.codec.usage import Tally
from personaplex.evaluate.recordings import Recording
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import Better, Row, mean, share
from personaplex.evaluate.statistics import is_above
from personaplex.models.mimi import Mimi
from personaplex.turns import QUIET_RMS
from personaplex.units import SAMPLE_RATE

SHORTEST_SECONDS = 0.25
"""Shorter recordings say nothing: no measure of speech is defined on them."""

PROBED_FILES, PROBED_SECONDS = 8, 10
"""What a codec's delay is measured on: the beginnings of the first recordings."""

MIMI, OPUS, HALF, SHUFFLED = "Mimi", "Opus", "half", "shuffled"

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Run:
    """What is the same for every recording."""

    coder: MimiCoder
    opus_bits: float | None
    seed: int

    @property
    def half(self) -> int:
        return self.coder.n_codebooks // 2

    def decoded(self, pcm: np.ndarray, number: int) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
        """A recording by everything it goes through; its codes; and Opus's bits per second."""
        codes, n = self.coder.encode(pcm), len(pcm)
        found = {MIMI: self.coder.decode(codes, n)}
        if self.half:
            found[HALF] = self.coder.decode(halved(codes), n)
        found[SHUFFLED] = self.coder.decode(shuffled(codes, np.random.default_rng([self.seed, number])), n)
        bits = math.nan
        if self.opus_bits is not None:
            found[OPUS], bits = opus(pcm, self.opus_bits)
        return found, codes, bits

    def delays(self, recordings: Sequence[Recording]) -> dict[str, Delay]:
        """Of Mimi and Opus; what is Mimi damaged has Mimi's."""
        pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {MIMI: [], OPUS: []}
        for recording in recordings:
            if len(pairs[MIMI]) == PROBED_FILES:
                break
            try:
                pcm = _usable(recording)[: PROBED_SECONDS * SAMPLE_RATE]
            except PersonaPlexError:
                continue  # it is reported when its turn comes
            pairs[MIMI].append((pcm, self.coder.decode(self.coder.encode(pcm), len(pcm))))
            if self.opus_bits is not None:
                pairs[OPUS].append((pcm, opus(pcm, self.opus_bits).pcm))
        found = {name: delay_of(of) for name, of in pairs.items()}
        return found | {HALF: found[MIMI], SHUFFLED: found[MIMI]}


def evaluate_codec(
    mimi: Mimi,
    recordings: Sequence[Recording],
    *,
    n_codebooks: int | None = None,
    with_opus: bool = True,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Result:
    """Measure `mimi` on recordings of any format and rate; channels are averaged.

    What comes out is compared with what went in after one shift for all recordings, the codec's delay, which is
    measured and stated. A recording that cannot be read, is silent or too short is a Failure, and the rest is counted.
    When none can be measured, the result's `error` says so. Raises UsageError for a number of codebooks that the codec
    does not have.
    """
    coder = MimiCoder(mimi, mimi.n_codebooks if n_codebooks is None else n_codebooks)
    run = _Run(coder, max(OPUS_LOWEST, coder.bits_per_second) if with_opus else None, seed)
    measures = [measure for measure in MEASURES if measure.missing is None]
    delays, tally = run.delays(recordings), Tally(coder.n_codebooks, mimi.n_bins)
    items: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for number, recording in enumerate(recordings):
        try:
            item, codes = _measured(run, recording, number, delays, measures)
        except PersonaPlexError as error:
            failures.append(Failure(recording.name, str(error)))
            say(f"not measured: {error}")
            continue
        tally.add(codes)
        items.append(item)
        say(f"{number + 1} of {len(recordings)}: {recording.name}")
    measured = share("recordings measured", [True] * len(items) + [False] * len(failures), better="higher")
    about = {**(about or {}), "recordings": len(recordings), "seed": seed}
    if not items:
        nothing = AudioError(f"none of {len(recordings)} recordings could be measured; the first: {failures[0].reason}")
        return Result("codec", about, [measured], failures=failures, error=nothing)
    items = [item | {"values": _added(run, item)} for item in items]
    rows = [measured, *_rows(run, items, delays, tally), *_missing_rows()]
    facts = {
        "measured": len(items),
        "codebooks": coder.n_codebooks,
        "bits_per_second": coder.bits_per_second,
        "opus_asked_for_bits_per_second": run.opus_bits,
        "delay_samples": {name: delays[name].samples for name in (MIMI, OPUS) if name == MIMI or with_opus},
        "frames": tally.n_frames,
        "perplexity": [use.perplexity for use in tally.uses()],
        "controls": _controls(run, items),
    }
    return Result("codec", {**about, **facts}, rows, items, failures)


def _usable(recording: Recording) -> np.ndarray:
    pcm = recording.read()
    if len(pcm) < SHORTEST_SECONDS * SAMPLE_RATE:
        raise AudioError(
            f"{recording.name} is {len(pcm) / SAMPLE_RATE:.2f} s long; it takes {SHORTEST_SECONDS} s or more to measure"
        )
    if rms(pcm) < QUIET_RMS / 10:
        raise AudioError(f"{recording.name} is silent; there is nothing in it that a codec could lose")
    return pcm


def _measured(
    run: _Run, recording: Recording, number: int, delays: dict[str, Delay], measures: Sequence[Measure]
) -> tuple[dict[str, Any], np.ndarray]:
    """One recording's item, and its codes."""
    pcm = _usable(recording)
    decoded, codes, opus_bits = run.decoded(pcm, number)
    values: dict[str, dict[str, float]] = {}
    for name, sound in decoded.items():
        pair = aligned(pcm, sound, delays[name].samples)
        values[name] = {measure.name: measure.of(*pair) for measure in measures}
    item = {"item": recording.name, "recording": recording.name, "seconds": len(pcm) / SAMPLE_RATE, "measures": values}
    return item | ({"opus_bits_per_second": opus_bits} if run.opus_bits is not None else {}), codes


class _Column(NamedTuple):
    """A row that is a mean over recordings: what a recording's item adds to it, NaN for nothing."""

    what: str
    of: Callable[[Mapping[str, Any]], float]
    unit: str
    goal: float | None = None
    better: Better | None = None

    def row(self, items: Sequence[Mapping[str, Any]]) -> Row:
        """The row of all recordings."""
        return mean(self.what, [self.of(item) for item in items], self.goal, unit=self.unit, better=self.better)


def _value(coder: str, measure: str, item: Mapping[str, Any]) -> float:
    # Infinite is what an exact copy would have: no number to take a mean of.
    value = float(item["measures"].get(coder, {}).get(measure, math.nan))
    return value if math.isfinite(value) else math.nan


def _advantage(measure: Measure, other: str, item: Mapping[str, Any]) -> float:
    """How much better Mimi is than `other`."""
    return measure.advantage(_value(MIMI, measure.name, item), _value(other, measure.name, item))


def _title(run: _Run) -> str:
    return f"Mimi, {run.coder.n_codebooks} codebooks"


def _columns(run: _Run, coder: str) -> list[_Column]:
    measures = [measure for measure in MEASURES if measure.missing is None]
    if coder in (MIMI, OPUS):
        title = _title(run) if coder == MIMI else "Opus"
        own = [_Column(f"{title}: {m.name}", partial(_value, coder, m.name), m.unit, better=m.better) for m in measures]
        if coder == MIMI:
            return own
        return own + [
            _Column(f"Mimi better than Opus by {m.name}", partial(_advantage, m, OPUS), m.unit, better="higher")
            for m in measures
        ]
    name = dict(_damaged(run))[coder]
    return [
        _Column(
            f"control, {name}: worse by {m.name}", partial(_advantage, m, coder), m.unit,
            0.0 if m.name in TELLING else None,
        )
        for m in measures
    ]  # fmt: skip


def _added(run: _Run, item: Mapping[str, Any]) -> dict[str, list[float]]:
    """What a recording adds to each row, for comparisons in pairs."""
    coders = [MIMI, *([OPUS] if run.opus_bits is not None else []), *dict(_damaged(run))]
    found = {column.what: column.of(item) for coder in coders for column in _columns(run, coder)}
    return {what: [value] for what, value in found.items() if not math.isnan(value)}


def _rows(run: _Run, items: Sequence[dict[str, Any]], delays: dict[str, Delay], tally: Tally) -> list[Row]:
    coder, n = run.coder, len(items)
    kbits, title = coder.bits_per_second / 1000, _title(run)
    made = [
        Row(f"{title}: bit rate (kbit/s)", kbits, (kbits, kbits), n, unit="kbit/s"),
        _delay_row(title, delays[MIMI], n),
    ]
    made += [column.row(items) for column in _columns(run, MIMI)]
    made += tally.rows()
    if run.opus_bits is not None:
        lowest = ", the lowest it is specified for" if run.opus_bits == OPUS_LOWEST else ""
        took = [item["opus_bits_per_second"] / 1000 for item in items]
        asked = f"Opus, asked for {run.opus_bits / 1000:g} kbit/s{lowest}"
        made += [
            mean(f"{asked}: bit rate that it took (kbit/s)", took, unit="kbit/s"),
            _delay_row("Opus", delays[OPUS], n),
        ]
        made += [column.row(items) for column in _columns(run, OPUS)]
    for control in dict(_damaged(run)):
        made += [column.row(items) for column in _columns(run, control)]
    return made


def _delay_row(title: str, delay: Delay, n: int) -> Row:
    how = "taken out before measuring" if delay.known else "none assumed, the waveforms are too unlike to show one"
    ms = 1000 * delay.samples / SAMPLE_RATE if delay.known else math.nan
    return Row(f"{title}: delay, {how} (ms)", ms, (math.nan, math.nan), n if delay.known else 0, better="lower")


def _damaged(run: _Run) -> Iterator[tuple[str, str]]:
    """Every control that there is, and what it is called: a single codebook has no half."""
    if run.half:
        yield HALF, f"{run.half} of the codebooks"
    yield SHUFFLED, "codes in another order"


def _controls(run: _Run, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether each damaged codec is told from the whole one, its interval above 0; None where there is no interval."""
    found = []
    for control, name in _damaged(run):
        for column, measure in zip(_columns(run, control), (m for m in MEASURES if m.missing is None), strict=True):
            if column.goal is not None:
                held = is_above([column.of(item) for item in items], 0.0)
                found.append({"control": name, "measure": measure.name, "held": held})
    return found


def _missing_rows() -> list[Row]:
    return [
        Row(f"{measure.name}: not measured, its package is not installed ({measure.missing})", *_NOTHING, 0)
        for measure in MEASURES
        if measure.missing is not None
    ]


_NOTHING: tuple[float, tuple[float, float]] = (math.nan, (math.nan, math.nan))
