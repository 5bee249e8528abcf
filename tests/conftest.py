"""Shared fixtures: the tiny reference model, loaded once, and what the reference computed with it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker a core: BLAS threads of their own would only wait for each other's.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Where nothing is to be written beside the sources, each of the programs that tests start would compile them anew.
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(
        Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
    )
    sys.dont_write_bytecode = False

import personaplex  # before mlx: it loads a fast BLAS where one is needed

import mlx.core as mx  # isort: skip

from personaplex.checkpoint.folder import ModelFolder
from personaplex.cuda.kernel import builder, on_card
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi

FIXTURES = Path(__file__).parent / "fixtures"
PARITY = FIXTURES / "parity"
WINDOW = FIXTURES / "window"
SHOTS = Path(__file__).parents[1] / "artefacts" / "page"
"""Screenshots that tests take, for people to look at; git ignores them."""
STARTED = time.time()
AUDIO = Path(__file__).parents[2] / "shared" / "audio"

SOAK = bool(os.environ.get("PERSONAPLEX_SOAK"))
"""`make soak`: the same tests, with half-hour calls and many more examples."""

settings.register_profile("default", deadline=None, max_examples=15, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=300)
settings.load_profile("soak" if SOAK else "default")

Tensors = dict[str, mx.array]


def read_expected(folder: Path) -> Tensors:
    loaded = mx.load(str(folder / "expected.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def peak_error(found: mx.array, expected: mx.array) -> float:
    """Largest difference, relative to the largest expected value."""
    return float(mx.abs(found - expected).max() / mx.abs(expected).max())


def same(found: mx.array, expected: mx.array) -> bool:
    return bool(mx.array_equal(found, expected.astype(found.dtype)).item())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which screenshots this run took, to be looked at."""
    taken = [path for path in SHOTS.glob("*.png") if path.stat().st_mtime >= STARTED]
    if taken:
        terminalreporter.write_line(f"{len(taken)} screenshots of the page are in {SHOTS}")


@pytest.fixture(scope="session", autouse=True)
def _built_kernels_are_kept_where_they_always_are() -> None:
    """On a card, where the tests would build them anew in every run otherwise."""
    if on_card():
        builder()


@pytest.fixture(autouse=True)
def _no_cache_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    # What was downloaded on this machine decides which recogniser is the default.
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path.parent / f"{tmp_path.name}-hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path.parent / f"{tmp_path.name}-hub"))


@pytest.fixture(scope="session")
def folder() -> ModelFolder:
    return ModelFolder(PARITY)


@pytest.fixture(scope="session")
def expected() -> Tensors:
    return read_expected(PARITY)


@pytest.fixture(scope="session")
def mimi(folder: ModelFolder) -> Mimi:
    return folder.load_mimi()


@pytest.fixture(scope="session")
def lm(folder: ModelFolder) -> LanguageModel:
    return folder.load_lm(dtype=mx.float32)


@pytest.fixture(scope="session")
def model() -> personaplex.PersonaPlex:
    return personaplex.PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False)


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    """Two and a bit seconds of something that is not silence, not a whole number of frames."""
    t = np.arange(52_345) / 24_000
    return (0.2 * np.sin(2 * np.pi * 180 * t * (1 + 0.1 * np.sin(3 * t))) * (np.sin(5 * t) > -0.3)).astype(np.float32)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for path in PARITY.iterdir():
        if path.is_file() and path.name != "expected.safetensors":
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "voices").mkdir()
    (copy / "voices" / "VOICE0.pt").write_bytes((PARITY / "voices" / "VOICE0.pt").read_bytes())
    return copy


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
