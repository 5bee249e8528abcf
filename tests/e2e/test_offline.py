"""With the network cut, all of it works, and nothing has tried: no telemetry, no look-ups, no downloads.

Every Python of these runs is guarded by `tests/offline/sitecustomize.py`: a socket beyond this machine raises.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import PARITY
from tests.e2e.test_serve import get, server
from tests.server.moshi.caller import calling

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "tests" / "offline", ROOT / "src")

Guarded = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a guarded process, with caches and a home of its own, as on a new machine."""
    own = {
        "PYTHONPATH": os.pathsep.join(map(str, SOURCES)), "OFFLINE_LOG": str(tmp_path / "attempts"),
        "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    return {**os.environ, **own}


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Guarded:
    def guarded(*command: str | Path, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return guarded


def attempts(folder: Path) -> str:
    path = folder / "attempts"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import urllib.request; urllib.request.urlopen('http://example.org/', timeout=1)",
    ],
)
def test_the_guard_guards(attempt: str, run: Guarded, tmp_path: Path) -> None:
    done = run(sys.executable, "-W", "ignore", "-c", attempt)
    assert done.returncode and "the network is cut" in done.stderr and attempts(tmp_path)


def test_respond_and_talk(run: Guarded, tmp_path: Path) -> None:
    program, question = (sys.executable, "-m", "personaplex"), ROOT / "examples" / "question.wav"
    common = ("--model", PARITY, "--input", question, "--max-seconds", "0.5", "--seed", "1")
    answered = run(*program, "respond", *common, "--output", "answer.wav")
    talked = run(*program, "talk", *common, "--output", "talked.wav", "--quiet")
    assert (answered.returncode, talked.returncode) == (0, 0), answered.stderr + talked.stderr
    assert (tmp_path / "answer.wav").stat().st_size > 10_000 < (tmp_path / "talked.wav").stat().st_size
    assert not attempts(tmp_path)


def test_serve_in_both_modes(environment: dict[str, str], tmp_path: Path) -> None:
    with server(**environment) as serve:
        serve.until("ready")
        with calling(serve.address) as call:
            call.until(0)
            call.converse(np.zeros(1920 * 3, np.float32))
        for path in ("/", "/health", "/metrics", "/v1/models", "/v1/voices", "/personas", "/openapi.json"):
            assert get(serve.address + path)[0] < 500, path
        serve.process.terminate()
        assert serve.end() == 0
    assert not attempts(tmp_path)


def test_the_demo(run: Guarded, tmp_path: Path) -> None:
    """`make demo` after its setup: the script itself, in a folder like the checkout."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "demo", checkout / "scripts" / "demo")
    for name in ("src", "tests", "examples"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / ".venv").symlink_to(Path(sys.executable).parents[1])
    done = run("sh", "scripts/demo", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert (checkout / "demo" / "answer.wav").stat().st_size > 10_000
    assert not attempts(tmp_path)
