"""What is not a conversation: music, noise, another language, shouting, silence. No crash, no loop, no babble.

The tiny model runs all of it for the path's sake; what nano says is judged as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.audio import read_audio
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE, frames_in
from tests.conftest import PARITY, SOAK

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = (r"role='(.*)'", r"--model nano --voice (\w+)", r"--seed (\d+)")
MAX_STEPS = 12


@pytest.fixture(scope="module")
def nano() -> PersonaPlex:
    return PersonaPlex.from_pretrained("nano", dtype=mx.float32, compiled=False)


@pytest.fixture(scope="module", params=["tiny", "nano"])
def model(request: pytest.FixtureRequest) -> PersonaPlex:
    if request.param == "nano":
        found = request.getfixturevalue("nano")
        assert isinstance(found, PersonaPlex)
        return found
    return PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False)


def seconds(n: float) -> np.ndarray:
    return np.asarray(np.arange(round(n * SAMPLE_RATE)) / SAMPLE_RATE)


def music() -> np.ndarray:
    """Chords of plucked strings, two per second."""
    t = seconds(0.5)
    chords = [(220, 277, 330), (196, 247, 294), (175, 220, 262), (196, 247, 330)]
    strings = [sum(np.sin(2 * np.pi * k * f * t) / k for f in chord for k in (1, 2, 3, 4)) for chord in chords]
    return np.concatenate([0.1 * string * np.exp(-4 * t) for string in strings])


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 2 * SAMPLE_RATE)


def german() -> np.ndarray:
    """The program, not the library: this asks for a language that training never synthesises."""
    program = shutil.which("espeak-ng")
    assert program, "espeak-ng is missing: sudo apt-get install espeak-ng (scripts/system-packages tests does it)"
    said = "Guten Tag, ich hätte gern zwei Brötchen und ein Stück Kuchen, bitte."
    done = subprocess.run(
        [program, "-v", "de", "--stdin", "--stdout"], input=said.encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    spoken = np.frombuffer(done.stdout[44:], "<i2") / 32768
    at = np.arange(0, len(spoken), 22_050 / SAMPLE_RATE)
    return np.asarray(np.interp(at, np.arange(len(spoken)), spoken))


def shouting() -> np.ndarray:
    return np.asarray(np.clip(30 * read_audio(EXAMPLES / "question.wav"), -1, 1))


def silence() -> np.ndarray:
    return np.zeros((600 if SOAK else 20) * SAMPLE_RATE)


NOT_SPEECH = (music, noise, silence)
SOUNDS = (*NOT_SPEECH, german, shouting)


def loops(text: str, most: int = 3) -> bool:
    """Whether some run of one to eight words is said more than `most` times in a row."""
    words = text.split()
    for n in range(1, 9):
        for start in range(len(words) - n * (most + 1) + 1):
            run = words[start : start + n]
            if all(words[start + i * n : start + (i + 1) * n] == run for i in range(1, most + 1)):
                return True
    return False


def test_a_loop_is_seen() -> None:
    assert loops("so we go on and on and on and on and") and loops("no " * 4)
    assert not loops("no no no that is not a loop") and not loops("")


@pytest.mark.parametrize("sound", SOUNDS, ids=lambda sound: sound.__name__)
def test_whatever_is_heard(model: PersonaPlex, sound: Callable[[], np.ndarray]) -> None:
    pcm = sound().astype(np.float32)
    reply = model.respond(pcm, seed=1, max_steps=MAX_STEPS, sampling=model.sampling(text_temperature=0.0))
    n_frames, n_user = reply.tokens.shape[1], frames_in(len(pcm))
    assert reply.user_frames == n_user <= n_frames <= n_user + MAX_STEPS
    assert len(reply.audio) == n_frames * FRAME_SAMPLES and bool(np.isfinite(reply.audio).all())
    text, codes = reply.tokens[0], reply.tokens[1:]
    assert text.min() >= 0 and text.max() < model.config.lm.text_card
    assert codes.min() >= 0 and codes.max() < model.config.lm.card
    if model.folder.path == PARITY:
        return  # random weights: what they say is not for judging
    words = reply.text.split()
    assert not loops(reply.text), reply.text
    assert len(words) <= 4 * n_frames / 12.5, "faster than anybody speaks"
    if sound in NOT_SPEECH:
        assert len(words) <= 20, f"babble: {reply.text}"


def test_a_call_goes_on_after_noise(model: PersonaPlex) -> None:
    """Noise does no lasting harm: the same conversation answers, at its own pace, after it."""
    first = model.respond(noise().astype(np.float32), seed=1, max_steps=0)
    second = model.respond(EXAMPLES / "question.wav", state=first, seed=1, max_seconds=4)
    assert bool(np.isfinite(second.audio).all()) and second.user_frames == 45
    if model.folder.path != PARITY:
        assert second.text and not loops(second.text)


def test_the_demo_is_answered_rightly(nano: PersonaPlex) -> None:
    """The question, the role, the voice and the seed of `make demo`."""
    script = (EXAMPLES.parent / "scripts" / "demo").read_text()
    role, voice, seed = (found[1] for found in (re.search(p, script) for p in DEMO) if found)
    reply = nano.respond(EXAMPLES / "opening-hours.flac", prompt=role, voice=voice, seed=int(seed), max_seconds=8)
    assert "nine" in reply.text.split("help")[-1].split(), reply.text


def test_the_demo_names_what_that_test_reads() -> None:
    script = (EXAMPLES.parent / "scripts" / "demo").read_text()
    assert [bool(re.search(pattern, script)) for pattern in DEMO] == [True] * 3
