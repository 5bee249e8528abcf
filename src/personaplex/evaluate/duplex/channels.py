"""Whose voice is in a file: the agent's recording of a clip and the user's, also where a file holds both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from personaplex.audio import read_channels
from personaplex.errors import AudioError
from personaplex.units import SAMPLE_RATE

AgentChannel = Literal["auto", "left", "right", "both"]
"""Which channel of a stereo file is the agent's; `both`: the channels are averaged, as the benchmark's scripts do."""

SAME = 0.8
"""Likeness from which two recordings are of the same sound: one that went through a codec is as like to itself."""

_SHIFT_SECONDS = 0.5
_RATE_DIVISOR = 3


def agent_sound(path: Path, user: Path, choice: AgentChannel = "auto") -> np.ndarray:
    """The agent's speech [S] at 24 kHz from `path`; `user` is the clip's input, if it is there.

    Of two channels the one is taken that is not the user's. Raises AudioError where that cannot be told, and for a file
    that is the user's own recording: then the files were swapped, or the agent's was never written.
    """
    channels = _one_or_two(path)
    users = [*read_channels(user).T] if user.exists() else []
    if len(channels) == 1:
        if len(users) == 1 and likeness(channels[0], users[0]) >= SAME:
            raise AudioError(f"{path} is the user's own recording ({user.name}) and not an agent's: were they swapped?")
        return channels[0]
    if choice != "auto":
        return _chosen(channels, choice)
    if len(users) == 1:
        alike = [likeness(channel, users[0]) >= SAME for channel in channels]
        if sum(alike) == 1:
            return channels[alike.index(False)]
    raise AudioError(
        f"{path} has two channels, and which is the agent's cannot be told from {user.name}; name it: --agent-channel"
    )


def user_sound(path: Path, choice: AgentChannel = "auto") -> np.ndarray:
    """The user's speech [S] at 24 kHz: of two channels the one that is not the agent's.

    Raises AudioError for two that differ when nobody says which is whose.
    """
    channels = _one_or_two(path)
    if len(channels) == 1:
        return channels[0]
    if choice == "auto":
        raise AudioError(f"{path} has two channels that differ; say which is the agent's: --agent-channel")
    other: dict[str, AgentChannel] = {"left": "right", "right": "left", "both": "both"}
    return _chosen(channels, other[choice])


def _one_or_two(path: Path) -> list[np.ndarray]:
    channels = [*read_channels(path).T]
    if len(channels) > 2:
        raise AudioError(f"{path} has {len(channels)} channels; expected one, or one for each speaker")
    return channels[:1] if len(channels) == 2 and np.array_equal(channels[0], channels[1]) else channels


def _chosen(channels: Sequence[np.ndarray], choice: AgentChannel) -> np.ndarray:
    return np.mean(channels, axis=0) if choice == "both" else channels[choice == "right"]


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Largest correlation of two recordings [S], moved against each other by up to half a second; 0 for silence."""
    # A third of the samples are enough to know speech by: averaged, so that nothing folds back.
    a, b = (_thinned(np.asarray(pcm, np.float64)) for pcm in (one, other))
    size = 1 << (len(a) + len(b)).bit_length()
    products = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    most = round(_SHIFT_SECONDS * SAMPLE_RATE / _RATE_DIVISOR)
    near = np.concatenate([products[: most + 1], products[-most:]])
    loudness = np.sqrt(np.sum(np.square(a)) * np.sum(np.square(b)))
    return float(near.max() / loudness) if loudness > 0 else 0.0


def _thinned(pcm: np.ndarray) -> np.ndarray:
    whole = pcm[: len(pcm) // _RATE_DIVISOR * _RATE_DIVISOR]
    return np.asarray(whole.reshape(-1, _RATE_DIVISOR).mean(axis=1))
