"""Recordings of live conversations: whole, or not there."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from personaplex.errors import OutputError, UsageError
from personaplex.live.recording import Recording, check_recording


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 100,000 bytes: to a writer, that is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_agent_left_user_right_and_what_was_said_when(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "call.wav", {"model": "tiny"})
    for _ in range(10):
        recording.add(np.full(2400, 0.5, np.float32), np.full(2400, -0.25, np.float32))
    recording.note(0.5, "agent text", text="Grüße")
    recording.note(0.25, "user started")
    recording.close(gaps=2)
    samples, rate = soundfile.read(tmp_path / "call.wav")
    assert rate == 24_000 and samples.shape == (24_000, 2)
    assert np.allclose(samples, [0.5, -0.25], atol=1e-4)
    report = json.loads((tmp_path / "call.json").read_text())
    assert (report["model"], report["seconds"], report["gaps"]) == ("tiny", 1.0, 2)
    assert [event["at"] for event in report["events"]] == [0.25, 0.5] and report["events"][1]["text"] == "Grüße"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.json", "call.wav"]


def test_a_full_disk_is_told_once_and_leaves_nothing(tmp_path: Path, full_disk: None) -> None:
    recording = Recording(tmp_path / "call.wav", {})
    sound = np.zeros(24_000, np.float32)
    with pytest.raises(OutputError, match=r"call\.wav"):
        for _ in range(10):
            recording.add(sound, sound)
    recording.add(sound, sound)
    recording.close()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.wav or \.flac"):
        check_recording(tmp_path / "call.mp3")
    with pytest.raises(OutputError, match="does not exist"):
        check_recording(tmp_path / "nowhere" / "call.wav")
    (tmp_path / "said.json").write_text("{}")
    with pytest.raises(UsageError, match=r"said\.json, which is there and is of something else"):
        check_recording(tmp_path / "said.wav")
    (tmp_path / "said.wav").write_bytes(b"")
    check_recording(tmp_path / "said.wav")  # made again under its own name
    with pytest.raises(UsageError, match=r"said\.json, which is for .*said\.wav"):
        check_recording(tmp_path / "said.flac")
    (tmp_path / "call.json").mkdir()
    with pytest.raises(OutputError, match=r"call\.json is a folder"):
        check_recording(tmp_path / "call.wav")
