"""A server whose cascade does as it is told, for tests of what is asked over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from fastapi.testclient import TestClient

from personaplex.audio import pcm16, wav_header
from personaplex.persona import Parts
from personaplex.server.app import create_app
from personaplex.server.service import Backends, Service
from personaplex.server.settings import ServerSettings
from tests.cascade_engines import Engines, LevelDetector
from tests.contract.scripted import Scripted
from tests.server.conftest import ABLE, settings

PARTS = Parts(recogniser="script-ears", llm="script-mind", synthesiser="script-voice")


@dataclass
class Stage:
    """Engines that follow a script, and services that use them."""

    engines: Engines

    def service(self, own: ServerSettings | None = None, slots: int = 2) -> Service:
        duplex = Scripted(slots, ("hello", "there"), ABLE)
        backends = Backends(
            "scripted",
            duplex,
            None,
            {"duplex": slots},
            voices=lambda: ["NATF0", "NATM1"],
            cascade_voices=lambda: ["one", "two"],
            parts=PARTS,
            close=duplex.close,
        )
        return Service.of(backends, own or settings())

    @contextmanager
    def client(self, own: ServerSettings | None = None, slots: int = 2) -> Iterator[TestClient]:
        with open_client(self.service(own, slots)) as http:
            yield http


@contextmanager
def open_client(service: Service) -> Iterator[TestClient]:
    """Requests in process, without a socket."""
    app = create_app(service)
    with TestClient(app, base_url="http://127.0.0.1:8998", raise_server_exceptions=False) as http:
        yield http


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr("personaplex.cascade.transcription.new_detector", LevelDetector)
    return Stage(Engines(monkeypatch))


@dataclass
class Shared:
    """One server for many tests that change nothing in it."""

    engines: Engines
    http: TestClient


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("personaplex.cascade.transcription.new_detector", LevelDetector)
        stage = Stage(Engines(patch))
        with stage.client() as http:
            yield Shared(stage.engines, http)


def wav(pcm: np.ndarray) -> bytes:
    return wav_header(len(pcm)) + pcm16(pcm).tobytes()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    ended = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ended
        time.sleep(0.005)
