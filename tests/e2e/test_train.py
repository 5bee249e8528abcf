"""The way of the bundled model from nothing, in miniature: every step of runs/nano.sh fits the next."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from personaplex import PersonaPlex
from personaplex.checkpoint.folder import ModelFolder
from personaplex.quality.report import Candidate, measure
from personaplex.quality.thresholds import Thresholds
from personaplex.train.clips import read_clips

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "fixtures" / "nano-tiny"


def nano(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "NANO_CONFIG": str(CONFIG),
        "NANO_MODEL": str(folder / "model"),
        "NANO_EVALUATE": "no",
        "OWN_LINES": "2",
        # What is freed stays with the process: half a minute of work is a third page faults otherwise.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
    }
    return subprocess.run(
        ["sh", str(ROOT / "runs" / "nano.sh"), str(folder)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    done = nano(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_model_comes_out_that_answers(made: Path) -> None:
    model = PersonaPlex.from_pretrained(made / "model")
    assert len(model.list_voices()) == 18
    reply = model.respond(
        ROOT / "examples" / "question.wav", voice="VARM4", prompt="You work for Blue Door.", max_seconds=1
    )
    assert len(reply.audio) > 0


def test_clips_can_be_read_in_parts(made: Path) -> None:
    whole = [clip for clip, _ in read_clips(made / "nano-clips")]
    parts = [clip for part in range(3) for clip, _ in read_clips(made / "nano-clips", part, 3)]
    assert len(whole) > 100 and parts == whole


def test_every_run_left_a_log_and_a_picture(made: Path) -> None:
    for run, steps in (("codec-1", 4), ("codec", 6), ("lm-1", 1), ("lm", 2)):
        last = json.loads((made / run / "log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == steps and last["loss"] > 0
        assert (made / run / "loss.svg").read_text().startswith("<svg")


def test_a_second_call_goes_on_where_the_first_stopped(made: Path) -> None:
    (made / "nano-clips" / "clips-0001.json").unlink()
    before = (made / "lm" / "log.jsonl").read_text()
    done = nano(made)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clips: shard 1 of 1" in done.stdout
    assert (made / "lm" / "log.jsonl").read_text() == before


def test_two_steps_of_training_are_still_random_weights(made: Path) -> None:
    thresholds = dataclasses.replace(Thresholds.read(), tail_seconds=0.0)
    itself = Candidate("itself", ModelFolder(made / "model").load_lm)
    found = measure(made / "model", [itself], [thresholds.audio], thresholds)
    assert found.padding is not None and found.padding < thresholds.least_padding / 5
    assert found.candidates[0].verdict.kind == "random"
