"""Who is speaking, and whether it still is speech."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personaplex.audio import read_audio
from personaplex.errors import UsageError
from personaplex.guard import COLLAPSED_FRAMES, NOISE_FRAMES, SAME_FRAMES, Guard
from personaplex.turns import QUIET_FRAMES, Turn, UserTurn, VoiceActivity
from personaplex.units import FRAME_SAMPLES
from personaplex.vad import SpeechDetector

QUESTION = Path(__file__).parents[2] / "examples" / "question.wav"


def told(script: str) -> str:
    """S or E where a turn starts or ends, for a script of frames: # sounds, . does not."""
    turn, out = Turn(), ""
    for frame in script:
        before, turn = turn, turn.after(frame == "#")
        out += "." if before.speaking == turn.speaking else "S" if turn.speaking else "E"
    return out


def test_an_agents_turn_outlives_its_pauses() -> None:
    quiet = "." * QUIET_FRAMES
    assert told("." * 40) == "." * 40
    assert told("##" + quiet + "..") == "S." + "." * (QUIET_FRAMES - 1) + "E.."
    assert told("#" + quiet[1:] + "#" + quiet) == "S" + quiet[1:] + "." + "." * (QUIET_FRAMES - 1) + "E"


@given(frames=st.lists(st.booleans(), max_size=60))
def test_turns_start_with_sound_and_end_after_quiet(frames: list[bool]) -> None:
    turn = Turn()
    for at, sounds in enumerate(frames):
        turn = turn.after(sounds)
        assert turn.speaking == any(frames[max(0, at - QUIET_FRAMES + 1) : at + 1])


def user(probabilities: list[float], rule: VoiceActivity) -> list[bool]:
    turn, speaking = UserTurn(), []
    for p in probabilities:
        turn = turn.after(p, rule)
        speaking.append(turn.speaking)
    return speaking


def test_a_users_turn_needs_speech_and_ends_after_silence() -> None:
    rule = VoiceActivity()  # 8 probabilities of speech, 32 of silence
    assert user([0.9] * 7 + [0.1] * 9, rule) == [False] * 16
    assert user([0.9] * 9, rule) == [False] * 7 + [True] * 2
    assert user([0.9] * 4 + [0.4] * 3 + [0.6] * 4, rule)[-1]  # in between nothing is decided
    said = [0.9] * 8 + [0.1] * 31 + [0.4, 0.1]
    assert user(said, rule) == [False] * 7 + [True] * 33 + [False]
    assert all(user([0.9] * 8 + ([0.1] * 31 + [0.9]) * 3, rule)[7:])
    for bad in ({"onset": 0.3}, {"offset": -0.1}, {"speech_seconds": -1.0}, {"silence_seconds": float("nan")}):
        with pytest.raises(UsageError):
            VoiceActivity(**bad)


def test_speech_is_heard_and_noise_is_not() -> None:
    """A question from one second to four and a half, silence around it."""
    question = read_audio(QUESTION)
    pcm = np.concatenate([np.zeros(24_000, np.float32), question, np.zeros(48_000, np.float32)])
    detector, turn, at = SpeechDetector(), UserTurn(), []
    for start in range(0, len(pcm) - FRAME_SAMPLES, FRAME_SAMPLES):
        for p in detector.push(pcm[start : start + FRAME_SAMPLES]):
            before, turn = turn, turn.after(p, VoiceActivity())
            if before.speaking != turn.speaking:
                at.append(start / 24_000)
    assert at == pytest.approx([1.5, 2 + len(question) / 24_000], abs=0.5)
    noise, detector = np.random.default_rng(0).normal(0, 0.05, 3 * 24_000).astype(np.float32), SpeechDetector()
    assert max(detector.push(noise)) < 0.5


THREADS = """
import sys
import personaplex
import mlx.core as mx
import numpy as np
from pathlib import Path
from personaplex.vad import SpeechDetector

if "blas" in sys.argv:
    mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))
detector = SpeechDetector()
before = len(list(Path("/proc/self/task").iterdir()))
assert len(list(detector.push(np.zeros(24_000, np.float32)))) > 25
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
@pytest.mark.parametrize("loaded", ["", "blas"])
def test_it_listens_in_the_thread_that_asks(loaded: str) -> None:
    """Also once BLAS has brought an OpenMP of its own, which then is everybody's."""
    done = subprocess.run([sys.executable, "-c", THREADS, loaded], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


PADDING = (0, 3)


def watch(frames: list[tuple[np.ndarray, int, int, float]]) -> list[tuple[int, str]]:
    guard = Guard(PADDING)
    found: list[tuple[int, str]] = []
    for at, (pcm, text, code, entropy) in enumerate(frames):
        if kind := guard.watch(pcm, text, np.full(8, code, np.int32), entropy):
            found.append((at, kind))
    return found


def voiced(at: int) -> np.ndarray:
    t = (np.arange(FRAME_SAMPLES) + at * FRAME_SAMPLES) / 24_000
    return (0.1 * np.sin(2 * np.pi * 150 * t) + 0.05 * np.sin(2 * np.pi * 450 * t)).astype(np.float32)


def test_signs_of_degenerate_speech_are_told_once() -> None:
    quiet = np.zeros(FRAME_SAMPLES, np.float32)
    rng = np.random.default_rng(0)
    sound = [(voiced(i), 3, i, 2.0) for i in range(60)]
    assert watch(sound) == []
    assert watch([(quiet, 3, 7, 0.0)] * 60) == []  # silence is the same codes, and sure of it
    assert watch([(voiced(i), 3, 7, 2.0) for i in range(60)]) == [(SAME_FRAMES, "repetition")]
    assert watch([(voiced(i), 3, i, 0.01) for i in range(60)]) == [(COLLAPSED_FRAMES - 1, "collapse")]
    noise = [(rng.normal(0, 0.1, FRAME_SAMPLES).astype(np.float32), 3, i, 2.0) for i in range(30)]
    assert watch(noise) == [(NOISE_FRAMES - 1, "noise")]
    assert watch(noise + sound + noise) == [
        (NOISE_FRAMES - 1, "noise"),
        (97, "noise"),
    ]
    loop = [(quiet, word, 7, 2.0) for word in [50, 3, 51, 3, 3, 52] * 7]
    assert [kind for _, kind in watch(loop)] == ["repetition"]
    assert watch([(quiet, 40 + i % 7, 7, 2.0) for i in range(60)]) == []
    seldom = [
        (quiet, 50 if i % 100 == 0 else 3, 7, 2.0) for i in range(1500)
    ]  # a word that is said every eight seconds
    assert watch(seldom) == []
    assert watch([(np.full(FRAME_SAMPLES, np.nan, np.float32), 3, 1, 2.0)]) == [(0, "not finite")]
    assert watch([(quiet, 3, 1, float("nan"))]) == [(0, "not finite")]


def test_people_are_not_taken_for_noise() -> None:
    pcm = read_audio(QUESTION)
    frames = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    assert watch([(frame, 3, i, 2.0) for i, frame in enumerate(frames)]) == []
