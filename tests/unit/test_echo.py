"""Taking the agent's voice out of the microphone's sound."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from personaplex.audio import rms
from personaplex.errors import UsageError
from personaplex.live.echo import Canceller, Gate, Untouched, echo_for
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE


def voice(seed: int, seconds: float) -> np.ndarray:
    """Noise in syllables."""
    n = int(seconds * SAMPLE_RATE)
    t = np.arange(n) / SAMPLE_RATE
    noise = np.random.default_rng(seed).normal(0, 0.1, n)
    return (np.convolve(noise, np.ones(8) / 4, "same") * (np.sin(2 * np.pi * (2 + seed) * t) > -0.3)).astype(np.float32)


def room(far: np.ndarray, delay_seconds: float) -> np.ndarray:
    """What a microphone hears of a loudspeaker: late, softer, with a reflection."""
    late = int(delay_seconds * SAMPLE_RATE)
    heard = np.zeros_like(far)
    heard[late:] += 0.4 * far[:-late]
    heard[late + 700 :] += 0.15 * far[: -late - 700]
    return heard


@pytest.mark.parametrize("delay", [0.03, 0.12])
def test_the_canceller_removes_the_agent_and_keeps_the_user(delay: float) -> None:
    pytest.importorskip("livekit.rtc")
    far, user = voice(0, 8), voice(1, 8)
    user[: 6 * SAMPLE_RATE] = 0
    mic = room(far, delay) + user
    canceller = Canceller(delay)
    cleaned = np.concatenate([canceller.clean(mic[i : i + 480], far[i : i + 480]) for i in range(0, len(mic), 480)])
    assert len(cleaned) == len(mic)
    alone, both = slice(3 * SAMPLE_RATE, 6 * SAMPLE_RATE), slice(6 * SAMPLE_RATE, None)
    assert rms(cleaned[alone]) < 0.1 * rms(mic[alone]), "20 dB"
    assert rms(cleaned[both]) > 0.3 * rms(user[both])


def test_the_gate_is_shut_while_the_agent_is_audible_and_a_little_longer() -> None:
    gate, mic = Gate(0.08), np.full(FRAME_SAMPLES, 0.2, np.float32)
    quiet, loud = np.zeros(FRAME_SAMPLES, np.float32), np.full(FRAME_SAMPLES, 0.1, np.float32)
    heard = [gate.clean(mic, far).any() for far in (quiet, loud, *[quiet] * 6)]
    assert heard == [True, False, False, False, False, False, False, True]


def test_headphones_need_nothing() -> None:
    mic = voice(0, 0.1)
    assert np.array_equal(Untouched().clean(mic, mic), mic)
    assert isinstance(echo_for("off", 0), Untouched) and isinstance(echo_for("gate", 0), Gate)


def test_without_the_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit", None)
    with pytest.raises(UsageError, match=r"pip install 'personaplex-mlx\[talk\]'.*--headphones"):
        echo_for("cancel", 0)
