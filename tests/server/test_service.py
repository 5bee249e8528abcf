"""What all routes share: who is taken, who is refused, what is counted, and how it ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import numpy as np
import pytest

from personaplex.conversation import Audio, Settings
from personaplex.errors import Busy, CheckpointError, PersonaError, Unavailable, UsageError
from personaplex.server.service import Backends, Mode, Service
from tests.contract.scripted import FRAME
from tests.server.conftest import settings

Make = Callable[..., Service]


def test_one_more_than_there_are_slots_is_refused_in_words_and_a_slot_comes_back(scripted_service: Make) -> None:
    service = scripted_service(slots=2)
    first, second = (service.open("duplex", Settings(), client="test") for _ in range(2))
    assert service.in_use("duplex") == 2 and not service.is_ready
    with pytest.raises(Busy, match="2 of 2 in use"):
        service.open("duplex", Settings(), client="test")
    first.close()
    third = service.open("duplex", Settings(), client="test")
    assert service.in_use() == 2 and {second.number, third.number} == set(service._sessions)
    page = service.metrics.page().decode()
    assert 'personaplex_refusals_total{code="resource_exhausted"} 1.0' in page
    assert 'personaplex_sessions_total{client="test",mode="duplex"} 3.0' in page
    assert 'personaplex_slots_used{mode="duplex"} 2.0' in page and 'personaplex_slots{mode="duplex"} 2.0' in page


def test_a_session_that_nobody_holds_is_not_counted_for_ever(scripted_service: Make) -> None:
    service = scripted_service(slots=1)
    service.open("duplex", Settings(), client="test")
    gc.collect()
    assert service.in_use() == 0
    assert 'personaplex_session_ends_total{reason="vanished"} 1.0' in service.metrics.page().decode()


def test_first_audio_and_the_end_are_noticed_by_the_reader(scripted_service: Make) -> None:
    service = scripted_service()
    with service.open("duplex", Settings(), client="test") as session:
        session.send(FRAME)
        session.finish()
        assert sum(isinstance(event, Audio) for event in session.events()) == 1
        assert service.in_use() == 0
    page = service.metrics.page().decode()
    assert 'personaplex_first_audio_seconds_count{client="test"} 1.0' in page
    assert 'personaplex_session_ends_total{reason="finished"} 1.0' in page


def test_voices_are_names_with_or_without_pt_and_never_paths(scripted_service: Make) -> None:
    service = scripted_service()
    assert service.voice("NATM1.pt") == service.voice("NATM1") == "NATM1"
    assert service.voice("") == ""
    for name in ("../NATM1.pt", "/etc/passwd", "NATM1.wav", "natm1", "NATM1.pt.pt", "piper:/tmp/x", "a\x00b"):
        with pytest.raises(PersonaError, match="unknown voice"):
            service.voice(name)
    with pytest.raises(PersonaError, match="there are slt, rms"):
        service.voice("flite/slt", "cascade")


def test_what_is_not_asked_for_is_the_personas(scripted_service: Make) -> None:
    service = scripted_service()
    default, aria = service.choose(), service.choose("aria", sampling={"audio_temperature": 0.5}, seed=3)
    assert default.voice is None and default.prompt == service.personas["assistant"].prompt
    assert (aria.voice, aria.seed) == ("NATF0", 3)
    assert aria.sampling == {"text_temperature": 0.6, "audio_temperature": 0.5}
    bare = service.choose("aria", voice="", prompt="")
    assert (bare.voice, bare.prompt) == ("", "")
    assert service.choose("sage", mode="cascade").prompt == "sage"
    with pytest.raises(PersonaError, match="unknown persona 'nobody'"):
        service.choose("nobody")


def test_it_takes_nobody_while_it_loads_or_after_it_could_not() -> None:
    def fail() -> Backends:
        raise CheckpointError("no such model")

    service = Service(settings(), fail)
    with pytest.raises(Unavailable, match="loading"):
        service.open("duplex", Settings(), client="test")
    service.start()
    assert isinstance(service.loaded.exception(10), CheckpointError)
    assert service.state == "failed" and not service.is_ready
    with pytest.raises(Unavailable, match="could not load"):
        service.open("duplex", Settings(), client="test")


def test_who_calls_again_at_once_is_not_refused_for_their_last_call(scripted_service: Make) -> None:
    service = scripted_service(slots=1, settings=settings(busy_seconds=20.0))
    last = service.open("duplex", Settings(), client="test")

    async def call_again() -> None:
        waiting = asyncio.create_task(service.wait_for_room("duplex"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.to_thread(last.close)
        await asyncio.wait_for(waiting, 5)
        service.open("duplex", Settings(), client="test").close()

    asyncio.run(call_again())


def test_draining_waits_for_the_last_and_takes_nobody(scripted_service: Make) -> None:
    service = scripted_service()
    session = service.open("duplex", Settings(), client="test")

    async def drain() -> None:
        draining = asyncio.create_task(service.drain(30))
        while service.state != "draining":
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="about to stop"):
            service.open("duplex", Settings(), client="test")
        assert not draining.done()
        session.close()
        await asyncio.wait_for(draining, 5)

    asyncio.run(drain())


def test_steps_of_the_real_engine_are_counted(tiny_service: Service) -> None:
    def steps() -> float:
        found = tiny_service.metrics.registry.get_sample_value("personaplex_step_seconds_count")
        assert found is not None
        return found

    before = steps()
    with tiny_service.open("duplex", tiny_service.choose(), client="test") as session:
        session.feed(np.zeros(1920, np.float32))
        session.finish()
        for _ in session.events():
            pass
    assert steps() == before + 1


@pytest.mark.parametrize(
    ("mode", "wrong"),
    [
        ("duplex", {"audio_top_k": 1 << 40}),
        ("duplex", {"nonsense": 1}),
        ("duplex", {"text_top_k": 1.5}),
        ("cascade", {"audio_top_k": 5}),
        ("cascade", {"text_temperature": -1.0}),
    ],
)
def test_sampling_that_cannot_be_is_refused_when_it_is_chosen(
    scripted_service: Make, mode: Mode, wrong: dict[str, float]
) -> None:
    service = scripted_service()
    with pytest.raises(UsageError):
        service.choose(sampling=wrong, mode=mode)
    assert service.choose(sampling={"text_temperature": 0.5}, mode=mode).sampling == {"text_temperature": 0.5}
