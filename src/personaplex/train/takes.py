"""Each line of a user's heard several times: a little faster and higher or slower and lower, at another place in the
frame, through another microphone, above another noise.

Synthesisers cost a processor's time and there are never enough lines; a codec on an accelerator costs nearly nothing.
What is done here is done to a batch at once, on the device: a language model that hears a line a hundred times
should not hear the same codes a hundred times.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np

from personaplex.train.clips import PHASES, Clip
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

FASTEST = 1.08
"""Most by which a take is played faster, or slower: its pitch and resonances go with it."""

NOISY, COLOURED = 0.3, 0.8
"""Share of takes with a noise of their own, and with another microphone."""

_BANDS, _TAPS = 9, 255
_STEP = FRAME_SAMPLES // PHASES


class Take(NamedTuple):
    """How one clip is heard: played `speed` times as fast, `late` samples later in its frame.

    `gain` and `noise` are in dB (noise: below the clip, infinite for none), `colour` [9] in dB, from below 200 Hz to
    above 10 kHz.
    """

    speed: float
    late: int
    gain: float
    noise: float
    colour: np.ndarray


def draw(rng: np.random.Generator) -> Take:
    """One take."""
    colour = rng.uniform(-3, 2) * np.linspace(-1, 1, _BANDS) * 3 + rng.normal(0, 3, _BANDS)
    return Take(
        speed=float(np.exp(rng.uniform(-np.log(FASTEST), np.log(FASTEST)))),
        late=int(rng.integers(PHASES)) * _STEP,
        gain=float(rng.uniform(-10, 4)),
        noise=float(rng.uniform(12, 35)) if rng.random() < NOISY else float("inf"),
        colour=np.clip(colour, -15, 9) if rng.random() < COLOURED else np.zeros(_BANDS),
    )


def moved(clip: Clip, take: Take) -> Clip:
    """What is known of the clip, in the take: where its words begin and end, its pause, its length."""

    def at(step: int) -> int:
        return int((step / take.speed * _STEP + take.late) // _STEP)

    steps = list(zip(clip.words, clip.phases, clip.end_phases, strict=True))
    begins = [at(first * PHASES + phase) for (_, first, _), phase, _ in steps]
    ends = [at(last * PHASES + phase) for (_, _, last), _, phase in steps]
    pause = tuple(at(frame * PHASES) // PHASES for frame in clip.pause) if clip.pause[1] else clip.pause
    return replace(
        clip,
        words=tuple(
            (word, begin // PHASES, end // PHASES)
            for (word, _, _), begin, end in zip(clip.words, begins, ends, strict=True)
        ),
        phases=tuple(begin % PHASES for begin in begins),
        end_phases=tuple(end % PHASES for end in ends),
        frames=-(-int(clip.frames * FRAME_SAMPLES / take.speed + take.late) // FRAME_SAMPLES),
        pause=(pause[0], pause[1]),
    )


def heard(pcm: mx.array, lead: int, takes: list[Take], seed: int, n_samples: int) -> mx.array:
    """Clips [B, S] float32, whose first `lead` samples come before the clip itself, each in its take: [B, n_samples].

    After the end of what is given there is silence.
    """
    speed, late, gain, noise = (
        mx.array(np.array([getattr(take, name) for take in takes], np.float32))[:, None]
        for name in ("speed", "late", "gain", "noise")
    )
    # Linear interpolation: what it takes from the treble, another microphone takes too.
    at = (mx.arange(n_samples)[None] - lead - late) * speed + lead
    whole = mx.floor(at)
    share = at - whole
    last = pcm.shape[1] - 1
    first = mx.clip(whole.astype(mx.int32), 0, last)
    second = mx.minimum(first + 1, last)
    inside = (at >= 0) & (at <= last)
    played = mx.take_along_axis(pcm, first, axis=1) * (1 - share) + mx.take_along_axis(pcm, second, axis=1) * share
    played = mx.where(inside, played, 0.0)

    colour = np.stack([take.colour for take in takes])
    played = _filtered(played, mx.array((10 ** (colour / 20) @ _filters()).astype(np.float32)))
    loudest = mx.sqrt(mx.square(played).mean(axis=1, keepdims=True) * 2 + 1e-9)
    hiss = mx.random.normal(played.shape, key=mx.random.key(seed))
    # A running mean of white noise falls towards the treble as a room's does.
    hiss = (hiss + mx.roll(hiss, 1, 1) + mx.roll(hiss, 2, 1) + mx.roll(hiss, 3, 1)) / 2
    level = mx.where(mx.isinf(noise), 0.0, loudest * mx.power(10.0, -noise / 20))
    return mx.clip((played + hiss * level) * mx.power(10.0, gain / 20), -1, 1)


def _filtered(pcm: mx.array, taps: mx.array) -> mx.array:
    """Samples [B, S], each row through its own filter [B, taps]: matrix products are what devices are fast at."""
    n_samples, size, middle = pcm.shape[1], taps.shape[1] + 1, taps.shape[1] // 2
    n_blocks = -(-n_samples // size)
    blocks = mx.pad(pcm, [(0, 0), (middle, (n_blocks + 1) * size - middle - n_samples)])
    blocks = blocks.reshape(len(pcm), n_blocks + 1, size)
    seen = mx.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)
    # Row i of a block's matrix is what sample i of the two that it sees gives to each of its own.
    tap = mx.arange(2 * size)[:, None] - mx.arange(size)
    inside = (tap >= 0) & (tap < size - 1)
    matrix = mx.where(inside, taps[:, mx.clip(tap, 0, size - 2)], 0.0)
    return (seen @ matrix).reshape(len(pcm), -1)[:, :n_samples]


@cache
def _filters() -> np.ndarray:
    """Band passes [9, taps] whose sum changes nothing: windowed sincs, an octave or so each."""
    n = np.arange(_TAPS) - _TAPS // 2
    edges = 200 * 2 ** np.linspace(0, np.log2(10_000 / 200), _BANDS - 1)
    lows = [2 * hz / SAMPLE_RATE * np.sinc(2 * hz / SAMPLE_RATE * n) * np.hanning(_TAPS + 2)[1:-1] for hz in edges]
    lows = [low / low.sum() for low in lows]
    every = (n == 0) * 1.0
    return cast(np.ndarray, np.diff(np.stack([0 * every, *lows, every]), axis=0))
