"""Takes of a clip: the sound goes where the words are said to be, and nothing else of it is lost."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from personaplex.train.clips import Clip
from personaplex.train.takes import FASTEST, Take, _filters, draw, heard, moved
from personaplex.units import FRAME_SAMPLES

LEAD = 2 * FRAME_SAMPLES
PLAIN = Take(1.0, 0, 0.0, math.inf, np.zeros(9))


def click(at: int, n_samples: int) -> mx.array:
    pcm = np.zeros((1, n_samples), np.float32)
    pcm[0, at : at + 24] = np.hanning(24)
    return mx.array(pcm)


def where(pcm: mx.array) -> int:
    return int(np.argmax(np.abs(np.array(pcm)[0])))


def test_a_plain_take_is_the_clip_itself() -> None:
    pcm = mx.array(np.random.default_rng(0).normal(0, 0.1, (2, 8000)).astype(np.float32))
    played = heard(pcm, 960, [PLAIN, PLAIN], 0, 8000)
    np.testing.assert_allclose(np.array(played), np.array(pcm), atol=2e-6)


def test_sound_and_words_move_together() -> None:
    rng, n_samples = np.random.default_rng(1), 60 * FRAME_SAMPLES
    for _ in range(20):
        take = draw(rng)._replace(noise=math.inf)
        first, phase = int(rng.integers(20)), int(rng.integers(16))
        clip = Clip("user", -1, None, (("hello", first, first),), 0, 40, phases=(phase,), end_phases=(phase,))
        said = moved(clip, take)
        sound = heard(click(LEAD + first * FRAME_SAMPLES + phase * 120, n_samples), LEAD, [take], 0, n_samples)
        begins = LEAD + said.words[0][1] * FRAME_SAMPLES + said.phases[0] * 120
        assert -1 <= where(sound) - 12 / take.speed - begins <= 121
        assert said.words[0][1:] == (said.words[0][1], said.words[0][1])
        assert 40 / FASTEST - 1 <= said.frames <= 40 * FASTEST + 2


def test_pauses_move_too_and_none_stays_none() -> None:
    clip = Clip("user", -1, None, (("well", 0, 2), ("yes", 20, 24)), 0, 26, (3, 19), (0, 4), (8, 8))
    assert moved(clip, PLAIN) == clip
    slower = moved(clip, PLAIN._replace(speed=1 / FASTEST))
    assert slower.pause[0] == 3 and slower.pause[1] == 20 and slower.words[1][1] == 21
    assert moved(Clip("user", -1, None, (), 0, 26), PLAIN._replace(late=960)).pause == (0, 0)


def test_noise_gain_and_colour_are_what_they_say() -> None:
    rng = np.random.default_rng(2)
    speech = mx.array(rng.normal(0, 0.05, (1, 48_000)).astype(np.float32))
    noisy = heard(speech, 0, [PLAIN._replace(noise=20.0)], 3, 48_000) - speech
    ratio = 10 * math.log10(float(mx.square(speech).mean() / mx.square(noisy).mean()))
    assert 15 < ratio < 18, "20 dB below the loud half of it"
    louder = heard(speech, 0, [PLAIN._replace(gain=-6.0)], 0, 48_000)
    assert math.isclose(float(mx.abs(louder).max() / mx.abs(speech).max()), 10 ** (-6 / 20), rel_tol=1e-3)
    t = np.arange(24_000) / 24_000
    high = mx.array((0.1 * np.sin(2 * np.pi * 11_500 * t)).astype(np.float32)[None])
    dull = PLAIN._replace(colour=np.array([0.0] * 8 + [-15.0]))
    assert float(mx.square(heard(high, 0, [dull], 0, 24_000)).mean() / mx.square(high).mean()) < 0.06


def test_a_take_sounds_as_a_convolution_would() -> None:
    rng = np.random.default_rng(3)
    pcm = rng.normal(0, 0.05, (3, 5000)).astype(np.float32)
    takes = [PLAIN._replace(colour=rng.uniform(-9, 6, 9)) for _ in pcm]
    played = np.array(heard(mx.array(pcm), 0, takes, 0, 5000))
    for row, take, sound in zip(pcm, takes, played, strict=True):
        expected = np.convolve(row, 10 ** (take.colour / 20) @ _filters(), "same")
        np.testing.assert_allclose(sound, expected, atol=1e-5)
