"""What benchmarks say of kernels: how far a step by them is from one by MLX's own operations."""

from __future__ import annotations

import json
import os
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from personaplex.bench import difference
from personaplex.bench.filled import filled
from personaplex.checkpoint.folder import ModelFolder
from personaplex.cli.main import main
from personaplex.cuda import kernel as kernels
from personaplex.cuda import ring
from personaplex.cuda.kernel import Kernel
from personaplex.engine.generator import Generator, GeneratorState
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.nn.state import arrays, copied, stack
from tests.conftest import PARITY, WINDOW
from tests.cuda.emulator import SLACK, emulate, fewer

FOLDER = ModelFolder(WINDOW)


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "launch", emulate)
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: 1)
    fewer(monkeypatch, "personaplex.cuda.ring.DEFAULT", ring.Tuning(threads=32, rows=2, fewest=4, splits=2))
    # These have many threads, and a card has them beside these.
    fewer(monkeypatch, "personaplex.cuda.depformer._MOST_SLOTS", 0)
    fewer(monkeypatch, "personaplex.cuda.matvec.TUNING", {})
    fewer(monkeypatch, "personaplex.cuda.sampling.DRAW_THREADS", 32)
    fewer(monkeypatch, "personaplex.cuda.sampling.NOISE_THREADS", 32)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(FOLDER.load_lm(dtype=mx.float32), FOLDER.config, pins=20)


def opened(generator: Generator, position: int, pinned: int) -> GeneratorState:
    state = generator.begin(None, seed=position, sampling=Sampling())[1]
    return filled(generator, state, position, pinned)


def test_kernels_that_are_right_are_off_by_rounding(generator: Generator) -> None:
    """Of slots before and behind the end of their windows, one with a pinned prompt."""
    state = stack([opened(generator, 7, 0), opened(generator, 30, 5), opened(generator, 60, 0)])
    said, after = difference.of_step(generator, state, (0, 1, 2))
    assert 0 < said["logits_off"] < SLACK * 1e-4  # type: ignore[operator]
    assert 0 < said["logits_off_rms"] < SLACK * 1e-5  # type: ignore[operator]
    assert after.temporal.position.tolist() == [8, 31, 61]
    assert kernels.launch is emulate


def test_the_state_behind_it_is_that_of_one_step(generator: Generator) -> None:
    """The steps by MLX's own operations, beside which it is held, leave no trace."""
    states, heard = [opened(generator, 30, 5) for _ in range(2)], []
    states[1] = copied(states[0], 0)
    mx.eval(arrays(states))
    for state, slots in zip(states, ((0, 0), (0,)), strict=True):
        _, after = difference.of_step(generator, state, slots)
        step, _ = generator.step(mx.zeros((1, 8), mx.int32), after, Ceiling.over(Sampling()))
        heard.append(np.array(step.text_logits))
    assert np.array_equal(heard[0], heard[1])


def test_a_kernel_that_is_wrong_shows(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    last = ring.ATTEND_RING if kernels.on_card() else ring.COMBINE  # a card does not split so short a window

    def wrong(kernel: Kernel, *rest: Any) -> list[mx.array]:
        first, *others = emulate(kernel, *rest)
        return [first * 1.01 if kernel is last else first, *others]

    monkeypatch.setattr(kernels, "launch", wrong)
    said, _ = difference.of_step(generator, opened(generator, 30, 5))
    assert said["logits_off_rms"] > 1e-4  # type: ignore[operator]


def test_where_no_kernel_computes_nothing_is_said(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    state = opened(generator, 7, 0)
    with difference.stock():
        assert not kernels.enabled() and os.environ["PERSONAPLEX_KERNELS"] == "stock"
        assert difference.of_step(generator, state) == ({}, state)
        assert difference.of_bundled(16) == {}
    assert kernels.enabled()
    monkeypatch.delenv("PERSONAPLEX_KERNELS")
    with pytest.raises(ZeroDivisionError), difference.stock():
        raise ZeroDivisionError
    assert "PERSONAPLEX_KERNELS" not in os.environ and kernels.launch is emulate


def test_every_row_of_kernels_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model that is measured, at the row's context, and of the bundled one; here the tiny model is both."""
    for codec in ("nn.conv", "models.seanet", "models.rvq"):  # which no logit is made of
        monkeypatch.setattr(f"personaplex.{codec}.by_kernels", lambda *_: False)
    monkeypatch.setattr(difference, "BUNDLED", str(PARITY))
    difference._of_bundled.cache_clear()
    most = 0.012 if kernels.on_card() else 1e-5  # random models are in bfloat16 there; an H200 has 0.006
    of = ["--model", f"random:{PARITY}", "--frames", "1", "--no-compile"]
    for arguments in (["step", "--context", "20"], ["sessions", "--sessions", "2"]):
        assert main(["bench", *arguments, *of]) == 0
        out, err = capsys.readouterr()
        rows = json.loads(out.splitlines()[-1])["rows"]
        assert len(rows) == len([line for line in err.splitlines() if "logits_off" in line]) > 0
        for row in rows:
            assert row["operations_by"] == "own"
            assert 0 < row["logits_off_rms"] < most
            if arguments[0] == "step":
                assert 0 < row["bundled_logits_off_rms"] < most and row["bundled_logits_off"] > 0
    difference._of_bundled.cache_clear()
