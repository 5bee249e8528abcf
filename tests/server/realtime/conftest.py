"""A server whose cascade has engines that do as they are told, and whose duplex model is a script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from personaplex.cascade.backend import Cascade
from personaplex.cascade.conversation import Manner
from personaplex.persona import Parts
from personaplex.server.service import Backends, Service
from tests.cascade_engines import Engines, LevelDetector
from tests.contract.scripted import Scripted
from tests.server.conftest import ABLE, serving, settings

PARTS = Parts("script-ears", "script-mind", "script-voice", voice="one")
SLOTS = 4


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def backends(cascade: Cascade, slots: int = SLOTS, words: tuple[str, ...] = ("hello", "there")) -> Backends:
    duplex = Scripted(slots, words, ABLE)

    def close() -> None:
        duplex.close()
        cascade.close()

    return Backends(
        "scripted",
        duplex,
        cascade,
        {"duplex": slots, "cascade": cascade.slots},
        voices=lambda: ["NATF0", "NATM1"],
        cascade_voices=lambda: ["one", "two"],
        parts=PARTS,
        close=close,
    )


@pytest.fixture
def service(engines: Engines) -> Iterator[Service]:
    cascade = Cascade(SLOTS, parts=PARTS, manner=Manner(detector=LevelDetector))
    made = Service.of(backends(cascade), settings(resume_seconds=5.0, unsent_seconds=2.0))
    yield made
    made.close()


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    """ws://127.0.0.1:PORT."""
    with serving(service) as address:
        yield address.replace("http", "ws", 1)
