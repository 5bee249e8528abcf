"""Recognisers for Macs at work: the real packages, in their own environment, on tiny random models."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-engines" / "bin" / "python"


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/engines_at_work.py prints."""
    assert PYTHON.exists(), "`make packages` (or scripts/engines-venv) makes .venv-engines"
    run = subprocess.run(
        [PYTHON, "-m", "tests.engines_at_work", tmp_path_factory.mktemp("engines")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert isinstance(found, dict)
    return found


def test_mlx_whisper_hears_words_their_times_and_the_language(at_work: dict[str, Any]) -> None:
    found = at_work["mlx-whisper"]
    assert len(found["languages"]) > 90
    guessed, asked = found["heard"]
    assert (guessed["language"], asked["language"]) == ("de", found["languages"][0])
    for heard in (guessed, asked):
        assert (
            heard["text"] == "good morning everybody" and [word[0] for word in heard["words"]] == heard["text"].split()
        )
        times = [time for word in heard["words"] for time in word[1:]]
        assert times == sorted(times) and 0 <= times[0] < times[-1] <= 2.1


def test_parakeet_hears_words_and_their_times(at_work: dict[str, Any]) -> None:
    found = at_work["parakeet-mlx"]
    assert found["languages"] == ["en"]
    for heard in found["heard"]:
        assert heard["text"] == " ".join(["good"] * len(heard["words"])) and len(heard["words"]) == 7
        assert heard["words"][1] == ["good", pytest.approx(0.32), pytest.approx(0.64)] and heard["language"] == "en"
    assert at_work["joined"] == [["Goodness,", 0.0, 1.25], ["me.", 1.5, 2.25]]


def test_qwen_hears_in_the_language_that_is_asked_for_and_comes_to_an_end(at_work: dict[str, Any]) -> None:
    found = at_work["qwen3-asr"]
    assert found["languages"] == ["en", "de"]
    guessed, asked = found["heard"]
    assert asked["text"] == "<asr_text>" * 80 and asked["language"] == "en", "the end of its prompt, 20 a second"
    assert len(guessed["text"]) <= 80 and guessed["language"] == "en" and guessed["words"] == asked["words"] == []
