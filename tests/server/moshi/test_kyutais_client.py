"""Kyutai's own client, `moshi.client` of the `moshi` wheel, as it is published, with a sound card made of pipes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from personaplex.server.service import Service
from tests.server.conftest import serving
from tests.server.moshi.pipe_card import PipeCard

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"

HAS_WHEELS = sys.version_info < (3, 14) and (sys.platform == "darwin" or os.uname().machine == "x86_64")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sound card of pipes is ALSA's, on Linux")
@pytest.mark.skipif(not HAS_WHEELS, reason="sphn and the client's aiohttp have no wheels for this machine or Python")
def test_kyutais_client_hears_and_speaks(scripted_service: Callable[..., Service], tmp_path: Path) -> None:
    """It names no voice and no role, sends before the handshake, and plays what comes back: here the user's sound."""
    assert PYTHON.exists(), "`make packages` (or scripts/clients-venv) makes .venv-clients"
    package = next((PYTHON.parents[1] / "lib").glob("python*/site-packages/moshi"))
    for name in ("client.py", "client_utils.py"):  # the package they are in imports torch
        (tmp_path / "kyutai").mkdir(exist_ok=True)
        (tmp_path / "kyutai" / name).write_bytes((package / name).read_bytes())
    t = np.arange(24_000 * 20) / 24_000
    card = PipeCard(tmp_path / "card", 0.3 * np.sin(2 * np.pi * 440 * t))
    service = scripted_service(slots=1, words=("good", "morning"))
    try:
        with serving(service) as address:
            port = address.rpartition(":")[2]
            client = subprocess.Popen(
                [PYTHON, "-m", "kyutai.client", "--host", "127.0.0.1", "--port", port],
                cwd=tmp_path,
                env={**os.environ, **card.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                until = time.monotonic() + 30
                while np.count_nonzero(np.abs(card.heard) > 0.1) < 24_000:
                    assert client.poll() is None and time.monotonic() < until, client.communicate()
                    time.sleep(0.05)
                assert service.in_use("duplex") == 1
            finally:
                client.send_signal(signal.SIGINT)
                out, told = client.communicate(timeout=20)
            while service.in_use("duplex"):
                assert time.monotonic() < until
                time.sleep(0.01)
    finally:
        card.close()
    assert out.startswith("good morning "), "what the agent says is printed as it comes"
    assert "connected!" in told
    # Of all it says, only the handshake is news to it: its server is told by that, and it prints that it is.
    assert re.findall(r"unknown message kind (\d+)", told) == ["0"]
    loud = card.heard[np.abs(card.heard).argmax() :][:12_000]
    peak = np.abs(np.fft.rfft(loud * np.hanning(len(loud)))).argmax() * 24_000 / len(loud)
    assert abs(peak - 440) < 5, "what it plays is what it said"
