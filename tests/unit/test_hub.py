"""Models by name, without a network: refused at once, in our words."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from personaplex.checkpoint import hub
from personaplex.errors import CheckpointError

NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_it_fails_fast(offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "getproxies", dict)
    if offline:
        monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it asked the network"))
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match="could not be fetched from the Hub"):
        hub.resolve("somebody/something")
    assert time.perf_counter() - began < 10
