"""What a microphone hears that is not speech: beds of noise, and events that should get no answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from personaplex.units import SAMPLE_RATE

_Maker = Callable[[np.random.Generator, int], np.ndarray]


def gain(decibels: float) -> float:
    """Decibels as a factor of amplitude."""
    return float(10 ** (decibels / 20))


def noise(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A bed of one of many kinds, float32 [n_samples], its mean power at -75 to -35 dBFS."""
    if not n_samples:
        return np.zeros(0, np.float32)
    return _levelled(_choose(rng, _BEDS)(rng, n_samples), gain(rng.uniform(-75, -35)))


def sound(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Something that is not speech, float32 [n_samples]: music, tones, clicks, knocks, barks, coughs, engines, claps.

    Peak between -30 and -3 dBFS.
    """
    if not n_samples:
        return np.zeros(0, np.float32)
    made = _choose(rng, _SOUNDS)(rng, n_samples)
    peak = np.abs(made).max(initial=0.0) + 1e-9
    return np.asarray((made * (gain(rng.uniform(-30, -3)) / peak)).astype(np.float32))


def _choose(rng: np.random.Generator, makers: tuple[_Maker, ...]) -> _Maker:
    return makers[int(rng.integers(len(makers)))]


def _levelled(pcm: np.ndarray, rms: float) -> np.ndarray:
    """To this mean power; a peak stays within [-1, 1]."""
    level = rms / (np.sqrt(np.mean(np.square(pcm))) + 1e-12)
    return np.asarray(np.clip(pcm * level, -1, 1).astype(np.float32))


def _seconds(n_samples: int) -> np.ndarray:
    return np.arange(n_samples) / SAMPLE_RATE


def _shaped(rng: np.random.Generator, n_samples: int, shape: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Noise with the amplitude `shape` gives to each frequency in Hz."""
    size = 1 << max(8, (n_samples - 1).bit_length())
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum = rng.standard_normal((2, len(hz)))
    return np.asarray(np.fft.irfft((spectrum[0] + 1j * spectrum[1]) * shape(np.maximum(hz, 20)), size)[:n_samples])


def _coloured(slope: float) -> _Maker:
    return lambda rng, n_samples: _shaped(rng, n_samples, lambda hz: hz**slope)


def _band(rng: np.random.Generator, n_samples: int, centre: float, width: float) -> np.ndarray:
    return _shaped(rng, n_samples, lambda hz: np.exp(-0.5 * (np.log2(hz / centre) / width) ** 2))


def _hum(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    mains = rng.choice((50.0, 60.0)) * (1 + rng.normal(0, 0.002))
    harmonics = np.arange(1, 12)[:, None]
    strengths = rng.random((11, 1)) / harmonics
    phases = rng.uniform(0, 2 * np.pi, (11, 1))
    hum = (strengths * np.sin(2 * np.pi * mains * harmonics * _seconds(n_samples) + phases)).sum(axis=0)
    return np.asarray(hum + 0.01 * rng.standard_normal(n_samples))


def _fan(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    turning = 1 + rng.uniform(0.05, 0.3) * np.sin(2 * np.pi * rng.uniform(3, 25) * _seconds(n_samples))
    return np.asarray(_band(rng, n_samples, rng.uniform(120, 600), rng.uniform(0.8, 1.6)) * turning)


def _babble(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Bands of noise that swell as syllables do, none of them a word."""
    total = np.zeros(n_samples)
    for _ in range(5):
        knots = np.arange(0, n_samples + SAMPLE_RATE, SAMPLE_RATE // 5)  # five a second, as syllables
        swell = np.interp(
            np.arange(n_samples), knots - rng.integers(4800), np.maximum(0, rng.standard_normal(len(knots)))
        )
        total += swell * _band(rng, n_samples, float(np.exp(rng.uniform(np.log(250), np.log(3000)))), 0.35)
    return total


def _crackle(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    clicks = (rng.random(n_samples) < rng.uniform(5, 60) / SAMPLE_RATE) * rng.standard_normal(n_samples)
    return np.asarray(
        np.convolve(clicks, np.exp(-np.arange(24) / 5.0))[:n_samples] + 2e-3 * rng.standard_normal(n_samples)
    )


_BEDS: tuple[_Maker, ...] = (_coloured(0), _coloured(-0.5), _coloured(-1), _hum, _fan, _babble, _crackle)


def _placed(rng: np.random.Generator, n_samples: int, per_second: float, make: Callable[[], np.ndarray]) -> np.ndarray:
    """At least one event of `make`, and about `per_second` of them, at random times."""
    out = np.zeros(n_samples)
    for _ in range(max(1, int(rng.poisson(per_second * n_samples / SAMPLE_RATE)))):
        event = make()
        at = int(rng.integers(max(1, n_samples - min(len(event), n_samples) + 1)))
        event = event[: n_samples - at]
        out[at : at + len(event)] += event
    return out


def _burst(rng: np.random.Generator, seconds: float, centre: float, width: float) -> np.ndarray:
    n_samples = int(seconds * 5 * SAMPLE_RATE)
    return _band(rng, n_samples, centre, width) * np.exp(-_seconds(n_samples) / seconds)


def _tone(hz: np.ndarray | float, seconds: float, partials: int = 1) -> np.ndarray:
    """A tone of a few partials, faded in and out; `hz` may change along [n]."""
    n_samples = int(seconds * SAMPLE_RATE)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, n_samples)) / SAMPLE_RATE
    wave = sum((np.sin(k * phase) / k for k in range(1, partials + 1)), np.zeros(n_samples))
    fade = np.minimum(1, np.minimum(np.arange(n_samples), np.arange(n_samples)[::-1]) / (0.008 * SAMPLE_RATE))
    return np.asarray(wave * fade)


def _music(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Chords and a melody on one scale."""
    beat, root, partials = rng.uniform(0.2, 0.6), rng.uniform(110, 330), int(rng.integers(1, 7))
    scale = np.array((0, 2, 4, 5, 7, 9, 11, 12))
    out = np.zeros(n_samples)
    for start in range(0, n_samples, max(1, int(beat * SAMPLE_RATE))):
        notes = rng.choice(scale, size=3 if rng.random() < 0.4 else 1, replace=False)
        for note in notes:
            length = beat * rng.uniform(0.7, 2.0)
            played = _tone(root * 2 ** (note / 12), length, partials)
            played = (played * np.exp(-_seconds(len(played)) * rng.uniform(0.5, 5)))[: n_samples - start]
            out[start : start + len(played)] += played
    return out


def _beeps(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    hz, length = rng.uniform(300, 3000), rng.uniform(0.05, 0.5)
    return _placed(rng, n_samples, rng.uniform(0.3, 2), lambda: _tone(hz, length))


def _typing(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    return _placed(
        rng, n_samples, rng.uniform(2, 10), lambda: _burst(rng, rng.uniform(0.002, 0.008), rng.uniform(1500, 5000), 0.8)
    )


def _knocks(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    gap = int(rng.uniform(0.15, 0.35) * SAMPLE_RATE)

    def knock() -> np.ndarray:
        one = _burst(rng, 0.025, rng.uniform(120, 400), 0.6)
        times = int(rng.integers(2, 5))
        row = np.zeros(gap * times + len(one))
        for i in range(times):
            row[i * gap : i * gap + len(one)] += one * rng.uniform(0.7, 1)
        return row

    return _placed(rng, n_samples, 0.2, knock)


def _sweep(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    def siren() -> np.ndarray:
        low, high = rng.uniform(200, 800), rng.uniform(900, 4000)
        length = rng.uniform(0.4, 2.0)
        return _tone(np.geomspace(low, high, int(length * SAMPLE_RATE))[:: int(rng.choice((-1, 1)))], length, 2)

    return _placed(rng, n_samples, 0.4, siren)


def _barks(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    base = rng.uniform(250, 700)

    def bark() -> np.ndarray:
        length = rng.uniform(0.1, 0.22)
        arch = np.sin(np.linspace(0.3, np.pi, int(length * SAMPLE_RATE)))
        return _tone(base * (0.7 + 0.5 * arch), length, 12) * arch + 0.3 * arch * rng.standard_normal(len(arch))

    return _placed(rng, n_samples, rng.uniform(0.5, 2), bark)


def _coughs(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    return _placed(
        rng, n_samples, rng.uniform(0.3, 1), lambda: _burst(rng, rng.uniform(0.04, 0.1), rng.uniform(500, 1500), 1.0)
    )


def _whistle(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    def note() -> np.ndarray:
        length = rng.uniform(0.2, 0.9)
        bend = np.linspace(0, rng.uniform(-0.4, 0.4), int(length * SAMPLE_RATE))
        return _tone(rng.uniform(900, 2500) * 2**bend, length)

    return _placed(rng, n_samples, rng.uniform(0.5, 2), note)


def _engine(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    speed = rng.uniform(25, 90) * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.05, 0.4) * _seconds(n_samples)))
    firing = np.sin(2 * np.pi * np.cumsum(speed) / SAMPLE_RATE)
    rumble = _band(rng, n_samples, 250, 1.2)
    return np.asarray(np.tanh(3 * firing) + 0.5 * (1 + firing) * rumble / (rumble.std() + 1e-9))


def _claps(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    return _placed(
        rng, n_samples, rng.uniform(0.5, 5), lambda: _burst(rng, rng.uniform(0.008, 0.02), rng.uniform(900, 2200), 0.7)
    )


_SOUNDS: tuple[_Maker, ...] = (
    _music, _music, _beeps, _typing, _knocks, _sweep, _barks, _coughs, _whistle, _engine, _claps,
)  # fmt: skip
