"""Taking the agent's voice out of the microphone's sound."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from personaplex.audio import read_audio, rms
from personaplex.errors import UsageError
from personaplex.live.echo import Canceller, Gate, Untouched, echo_for
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

EXAMPLES = Path(__file__).parents[2] / "examples"


def room(far: np.ndarray, delay_seconds: float) -> np.ndarray:
    """What a microphone hears of a loudspeaker: late, softer, with a reflection."""
    late = int(delay_seconds * SAMPLE_RATE)
    heard = np.zeros_like(far)
    heard[late:] += far[:-late]
    heard[late + 700 :] += 0.3 * far[: -late - 700]
    return heard


@pytest.mark.parametrize("gain", [0.1, 0.8])
@pytest.mark.parametrize("delay", [0.03, 0.12])
def test_the_canceller_removes_the_agent_and_keeps_the_user(delay: float, gain: float) -> None:
    """Two people speak; the microphone hears both, and afterwards only one is left, nearly as loud."""
    pytest.importorskip("livekit.rtc")
    agent, question = read_audio(EXAMPLES / "opening-hours.flac"), read_audio(EXAMPLES / "question.wav")
    far = np.tile(agent, 3)[: 12 * SAMPLE_RATE]
    user = np.zeros_like(far)
    user[8 * SAMPLE_RATE :][: len(question)] = question
    mic = gain * room(far, delay) + user
    canceller = Canceller(delay)
    cleaned = np.concatenate([canceller.clean(mic[i : i + 480], far[i : i + 480]) for i in range(0, len(mic), 480)])
    assert len(cleaned) == len(mic)
    alone, both = slice(4 * SAMPLE_RATE, 8 * SAMPLE_RATE), slice(8 * SAMPLE_RATE, 8 * SAMPLE_RATE + len(question))
    assert rms(cleaned[alone]) < 0.01 * rms(mic[alone]), "40 dB"
    assert 0.6 < rms(cleaned[both]) / rms(user[both]) < 1.1


def test_the_gate_is_shut_while_the_agent_is_audible_and_a_little_longer() -> None:
    gate, mic = Gate(0.08), np.full(FRAME_SAMPLES, 0.2, np.float32)
    quiet, loud = np.zeros(FRAME_SAMPLES, np.float32), np.full(FRAME_SAMPLES, 0.1, np.float32)
    heard = [gate.clean(mic, far).any() for far in (quiet, loud, *[quiet] * 6)]
    assert heard == [True, False, False, False, False, False, False, True]


def test_headphones_need_nothing() -> None:
    mic = np.full(480, 0.1, np.float32)
    assert np.array_equal(Untouched().clean(mic, mic), mic)
    assert isinstance(echo_for("off", 0), Untouched) and isinstance(echo_for("gate", 0), Gate)


def test_without_the_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit", None)
    with pytest.raises(UsageError, match=r"pip install 'personaplex-mlx\[talk\]'.*--headphones"):
        echo_for("cancel", 0)
