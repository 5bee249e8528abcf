"""Whose voice is in a file: one channel or two, the right way round or swapped, at any rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from personaplex.audio import write_audio
from personaplex.errors import AudioError
from personaplex.evaluate.duplex.channels import agent_sound, likeness, user_sound
from personaplex.speech import AGENTS, say
from tests.duplex.folders import hum

USER = say(AGENTS["NATM0"], "what time do you open on sunday please").pcm
AGENT = np.resize(say(AGENTS["NATF2"], "we open at ten o'clock and we close at six").pcm, len(USER))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_audio(tmp_path / "input.wav", USER)
    return tmp_path


def write(path: Path, *channels: np.ndarray, rate: int = 24_000) -> Path:
    soundfile.write(path, np.stack(channels, axis=1), rate)
    return path


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_channels_the_one_that_is_not_the_users_is_the_agents(clip: Path, swapped: bool) -> None:
    channels = (AGENT, USER) if swapped else (USER, AGENT)
    found = agent_sound(write(clip / "output.wav", *channels), clip / "input.wav")
    assert likeness(found, AGENT) > 0.99


def test_the_users_channel_is_known_after_another_rate_and_a_delay(clip: Path) -> None:
    heard = np.pad(USER, (4800, 0))[: len(USER)]
    slower = [channel[::3] for channel in (heard, AGENT)]
    found = agent_sound(write(clip / "output.wav", *slower, rate=8000), clip / "input.wav")
    assert abs(len(found) - len(USER)) < 3
    assert likeness(found, AGENT) > 0.8


def test_where_it_cannot_be_told_it_must_be_said(clip: Path) -> None:
    path = write(clip / "output.wav", hum(2, 1), hum(2, 2))
    with pytest.raises(AudioError, match="--agent-channel"):
        agent_sound(path, clip / "input.wav")
    with pytest.raises(AudioError, match="--agent-channel"):
        agent_sound(path, clip / "none.wav")
    assert likeness(agent_sound(path, clip / "input.wav", "left"), hum(2, 1)) > 0.99
    assert likeness(agent_sound(path, clip / "input.wav", "right"), hum(2, 2)) > 0.99
    both = agent_sound(path, clip / "input.wav", "both")
    assert np.allclose(both, (hum(2, 1) + hum(2, 2)) / 2, atol=1e-3)


def test_two_equal_channels_are_one(clip: Path) -> None:
    assert likeness(agent_sound(write(clip / "output.wav", AGENT, AGENT), clip / "input.wav"), AGENT) > 0.99


def test_three_channels_are_refused(clip: Path) -> None:
    with pytest.raises(AudioError, match="3 channels"):
        agent_sound(write(clip / "output.wav", AGENT, USER, USER), clip / "input.wav")


def test_an_output_that_is_the_input_is_told(clip: Path) -> None:
    write_audio(clip / "output.wav", 0.5 * USER)
    with pytest.raises(AudioError, match="were they swapped"):
        agent_sound(clip / "output.wav", clip / "input.wav")


def test_the_users_side_of_a_stereo_input(clip: Path) -> None:
    path = write(clip / "input.wav", USER, AGENT)
    with pytest.raises(AudioError, match="--agent-channel"):
        user_sound(path)
    assert likeness(user_sound(path, "right"), USER) > 0.99
    assert likeness(user_sound(path, "left"), AGENT) > 0.99


def test_silence_is_like_nothing() -> None:
    assert likeness(np.zeros(1000, np.float32), USER) == 0.0
    assert likeness(USER, USER) == pytest.approx(1.0)
    assert likeness(USER, AGENT) < 0.3
