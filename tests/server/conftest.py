"""What all tests of the server share: a service without a model, and real servers on free ports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest

from personaplex import PersonaPlex
from personaplex.conversation import Capabilities
from personaplex.runtime.engine import Engine
from personaplex.server.process import Server, listen
from personaplex.server.service import Backends, Service
from personaplex.server.settings import ServerSettings
from tests.conftest import PARITY
from tests.contract.scripted import Scripted

ABLE = Capabilities(full_duplex=True, text_input=True, cancel=True, update=True, keep_history=True)


def scripted_backends(slots: int = 2, words: tuple[str, ...] = ("hello", "there")) -> Backends:
    """Both modes are scripted: the user's own sound comes back, with a word every five frames."""
    duplex, cascade = Scripted(slots, words, ABLE), Scripted(slots, words, ABLE)

    def close() -> None:
        duplex.close()
        cascade.close()

    return Backends(
        "scripted",
        duplex,
        cascade,
        {"duplex": slots, "cascade": slots},
        voices=lambda: ["NATF0", "NATM1"],
        cascade_voices=lambda: ["slt", "rms"],
        close=close,
    )


def tiny_backends(slots: int = 2) -> Backends:
    """The tiny model of the parity tests: random weights, a real voice prompt, and a slot for each caller."""
    engine = Engine(lambda: PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False), slots)
    return Backends(
        "tiny",
        engine,
        None,
        {"duplex": slots},
        voices=engine.model.list_voices,
        role_tokens=lambda text: len(engine.model.tokenizer.role_tokens(text)),
        context_frames=engine.model.lm.config.context,
        watch=engine.watch,
        unheard=lambda: engine.unheard,
        close=engine.close,
    )


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """A real server of `service` in a thread; its address, http://127.0.0.1:PORT."""
    bound = listen(service.settings)
    server = Server(service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])), name="test-server")
    thread.start()
    try:
        yield f"{service.settings.scheme}://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def settings(**changes: object) -> ServerSettings:
    """Settings of a test's server: any free port, and nobody who is refused waits for it."""
    return ServerSettings(**{"port": 0, "busy_seconds": 0.0, **changes})  # type: ignore[arg-type]


@pytest.fixture
def scripted_service() -> Iterator[Callable[..., Service]]:
    """Makes services of scripted backends: `scripted_service(slots=2, words=(...), settings=...)`."""
    made: list[Service] = []

    def make(
        slots: int = 2,
        words: tuple[str, ...] = ("hello", "there"),
        settings: ServerSettings = settings(),  # noqa: B008
    ) -> Service:
        made.append(Service.of(scripted_backends(slots, words), settings))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture(scope="session")
def tiny_service() -> Iterator[Service]:
    """The tiny model, two slots, loaded once."""
    service = Service.of(tiny_backends(), settings())
    yield service
    service.close()


@pytest.fixture(scope="session")
def tiny_server(tiny_service: Service) -> Iterator[str]:
    """A real server with the tiny model: its address."""
    with serving(tiny_service) as address:
        yield address
