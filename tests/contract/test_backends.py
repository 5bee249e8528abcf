"""What every backend promises to whoever builds on the seam: the duplex engine, and the script that tests use."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    Audio,
    Backend,
    Conversation,
    Ended,
    Event,
    Overrun,
    Ready,
    Settings,
    UserStarted,
    UserStopped,
)
from personaplex.errors import AudioError, Busy, Closed, Unsupported
from personaplex.units import FRAME_SAMPLES
from tests.contract.scripted import Scripted
from tests.small import tiny_engine

SLOTS = 2


@pytest.fixture(scope="module", params=["scripted", "duplex"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made: Backend = Scripted(SLOTS) if request.param == "scripted" else tiny_engine(SLOTS)
    yield made
    made.close()


def sound(seed: int, n_samples: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)


def check(events: list[Event]) -> None:
    """What holds for every conversation from its first event to its last."""
    assert isinstance(events[0], Ready) and [isinstance(e, Ended) for e in events] == [False] * (len(events) - 1) + [
        True
    ]
    audio = [event for event in events if isinstance(event, Audio)]
    assert [event.frame for event in audio] == list(range(len(audio)))
    for event in audio:
        assert event.pcm.shape == (FRAME_SAMPLES,) and event.pcm.dtype == np.float32 and np.isfinite(event.pcm).all()
    assert events[-1].frame == len(audio)
    for started, stopped in ((AgentStarted, AgentEnded), (UserStarted, UserStopped)):
        turns = [type(event) for event in events if isinstance(event, (started, stopped))]
        assert all(a != b for a, b in pairwise(turns)) and turns[:1] in ([], [started])


def test_a_conversation_from_ready_to_ended(backend: Backend) -> None:
    with backend.open(Settings(seed=3)) as conversation:
        assert conversation.capabilities == backend.capabilities
        conversation.feed(sound(0, 3 * FRAME_SAMPLES + 7))
        conversation.finish()
        events = list(conversation.events())
    check(events)
    assert events[0] == Ready(0, seed=3) and events[-1] == Ended(4, "finished")
    assert list(conversation.events()) == []


def test_any_chunking_gives_the_same_events(backend: Backend) -> None:
    pcm, said = sound(1, 4 * FRAME_SAMPLES + 100), []
    for size in (1_000_000, FRAME_SAMPLES, 777):
        with backend.open(Settings(seed=3)) as conversation:
            for start in range(0, len(pcm), size):
                conversation.feed(pcm[start : start + size])
            conversation.finish()
            said.append([event for event in conversation.events() if not isinstance(event, (UserStarted, UserStopped))])
    for events in said:
        check(events)
        assert events == said[0]
        assert all(np.array_equal(a.pcm, b.pcm) for a, b in zip(heard(events), heard(said[0]), strict=True))


def heard(events: list[Event]) -> list[Audio]:
    return [event for event in events if isinstance(event, Audio)]


def test_events_can_be_awaited(backend: Backend) -> None:
    async def talk() -> list[Event]:
        async with backend.open(Settings(seed=3)) as conversation:
            events = []

            async def read() -> None:
                events.extend([event async for event in conversation.events()])

            reader = asyncio.create_task(read())
            await asyncio.sleep(0)
            conversation.send(sound(0, 2 * FRAME_SAMPLES))
            conversation.finish()
            await reader
            return events

    events = asyncio.run(asyncio.wait_for(talk(), 60))
    check(events)
    assert len(heard(events)) == 2


def test_what_is_not_sound_is_refused_and_the_talk_goes_on(backend: Backend) -> None:
    with backend.open(Settings(seed=3)) as conversation:
        bad = sound(0, FRAME_SAMPLES)
        bad[7] = np.nan
        for refused in (bad, np.zeros((2, 9), np.float32), np.zeros(9, np.int64)):
            with pytest.raises(AudioError):
                conversation.send(refused)
        conversation.send(np.zeros(0, np.float32))
        conversation.send((sound(0, FRAME_SAMPLES) * 32767).astype(np.int16))
        conversation.finish()
        assert len(heard(list(conversation.events()))) == 1


def test_after_the_end_everything_is_refused(backend: Backend) -> None:
    conversation = backend.open(Settings(seed=3))
    conversation.close()
    conversation.close()
    events = list(conversation.events())
    assert events[-1] == Ended(0, "closed")
    acts: list[Callable[[], None]] = [
        lambda: conversation.send(sound(0, 10)),
        lambda: conversation.feed(sound(0, 10)),
        lambda: conversation.send_text("hello"),
        conversation.cancel,
        conversation.finish,
        lambda: conversation.update(voice=""),
    ]
    for act in acts:
        with pytest.raises(Closed):
            act()


def test_what_a_backend_cannot_do_it_says(backend: Backend) -> None:
    able = backend.capabilities
    with backend.open(Settings(seed=3)) as conversation:
        acts: list[tuple[bool, Callable[[], None]]] = [
            (able.text_input, lambda: conversation.send_text("hello")),
            (able.cancel, conversation.cancel),
            (able.update, lambda: conversation.update(prompt="assistant")),
        ]
        for can, act in acts:
            if not can:
                with pytest.raises(Unsupported):
                    act()
            else:
                act()


def test_full_is_said_at_once_with_numbers_and_closing_makes_room(backend: Backend) -> None:
    held: list[Conversation] = [backend.open(Settings(seed=i)) for i in range(SLOTS)]
    with pytest.raises(Busy, match="2 of 2") as refused:
        backend.open(Settings(seed=9))
    assert (refused.value.in_use, refused.value.slots) == (SLOTS, SLOTS)
    held.pop().close()
    held.append(backend.open(Settings(seed=9)))
    with pytest.raises(Busy):
        backend.open(Settings(seed=9))
    for conversation in held:
        conversation.close()


def test_a_vanished_owner_frees_the_slot_and_a_reader_is_an_owner(backend: Backend) -> None:
    held = [backend.open(Settings(seed=i)) for i in range(SLOTS)]
    events = held.pop().events()
    gc.collect()
    with pytest.raises(Busy):
        backend.open(Settings(seed=9))
    del events
    gc.collect()
    backend.open(Settings(seed=9)).close()
    held[0].close()


def test_ten_minutes_at_once_are_heard_or_told_of(backend: Backend) -> None:
    n_frames = 7_500
    with backend.open(Settings(seed=3)) as conversation:
        conversation.send(np.zeros(n_frames * FRAME_SAMPLES, np.float32))
        conversation.finish()
        events = list(conversation.events())
    check(events)
    sheds = [event for event in events if isinstance(event, Overrun)]
    assert len(heard(events)) + sum(event.dropped for event in sheds) == n_frames
    assert not sheds or sheds[-1].total == sum(event.dropped for event in sheds)


def test_a_recording_is_fed_as_fast_as_it_is_heard(backend: Backend) -> None:
    with backend.open(Settings(seed=3)) as conversation:
        reader = threading.Thread(target=lambda: events.extend(conversation.events()))
        events: list[Event] = []
        reader.start()
        conversation.feed(sound(0, 40 * FRAME_SAMPLES), timeout=60)
        conversation.finish()
        reader.join(60)
    check(events)
    assert len(heard(events)) == 40 and not any(isinstance(event, Overrun) for event in events)
