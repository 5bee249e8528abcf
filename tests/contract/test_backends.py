"""What every backend promises to whoever builds on the seam: the engine, the cascade, a script."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from personaplex.cascade.backend import Cascade
from personaplex.cascade.delegated import Delegated
from personaplex.cascade.deputy import Deputy
from personaplex.cascade.transcribed import Transcribed
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Backend,
    Capabilities,
    Conversation,
    Ended,
    Event,
    EventStream,
    Interrupted,
    Overrun,
    Ready,
    Settings,
    UserStarted,
    UserStopped,
)
from personaplex.errors import AudioError, Busy, Closed, Unsupported, UsageError
from personaplex.units import FRAME_SAMPLES
from tests.contract.scripted import Scripted
from tests.small import tiny_engine

SLOTS = 2


ABLE = Capabilities(full_duplex=True, text_input=True, cancel=True, update=True, keep_history=True)
BACKENDS: dict[str, Callable[[], Backend]] = {
    "script": lambda: Scripted(SLOTS),
    "able script": lambda: Scripted(SLOTS, capabilities=ABLE),
    "duplex": lambda: tiny_engine(SLOTS),
    "cascade": lambda: Cascade(SLOTS),
    "transcribed": lambda: Transcribed(Scripted(SLOTS)),
    "delegated": lambda: Delegated(Scripted(SLOTS, capabilities=ABLE), Deputy(lambda *_: None)),
}


able = pytest.mark.parametrize("backend", ["able script", "duplex", "delegated"], indirect=True)
"""A cascade answers what is typed, and says nothing unasked: `test_cascade.py` has its own."""
changeable = pytest.mark.parametrize("backend", ["able script", "duplex", "cascade", "delegated"], indirect=True)


@pytest.fixture(scope="module", params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = BACKENDS[request.param]()
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
            (able.keep_history, lambda: conversation.update(prompt="assistant", keep_history=True)),
        ]
        for can, act in acts:
            if not can:
                with pytest.raises(Unsupported):
                    act()
            else:
                act()


def listen(conversation: Conversation, events: EventStream, n_frames: int) -> list[Event]:
    """The events of the next frames."""
    found: list[Event] = []
    conversation.feed(sound(n_frames, n_frames * FRAME_SAMPLES))
    while len(heard(found)) < n_frames:
        event = events.get(60)
        assert event is not None and not isinstance(event, Ended)
        found.append(event)
    return found


@able
def test_typed_text_is_said_once(backend: Backend) -> None:
    with backend.open(Settings(seed=3)) as conversation:
        events = conversation.events()
        found = listen(conversation, events, 3)
        conversation.send_text("  ")
        conversation.send_text("one two")
        found += listen(conversation, events, 30)
        conversation.finish()
        found += list(events)
    check(found)
    said = "".join(event.text for event in found if isinstance(event, AgentText))
    assert said.count("one two") == 1


@able
def test_a_turn_that_is_cancelled_is_over(backend: Backend) -> None:
    with backend.open(Settings(seed=3)) as conversation:
        events = conversation.events()
        found = listen(conversation, events, 3)
        assert sum(isinstance(event, AgentStarted) for event in found) == 1
        conversation.send_text("never said")
        conversation.cancel()
        after = listen(conversation, events, 12)
        conversation.cancel()
        after += listen(conversation, events, 3)
        conversation.finish()
        found += after + list(events)
    check(found)
    at = next(i for i, event in enumerate(after) if isinstance(event, Interrupted))
    assert type(after[at + 1]) is AgentEnded and after[at].frame <= 4 + 1
    assert not any(isinstance(event, (AgentText, AgentStarted, Interrupted)) for event in after[at + 1 :])
    assert "never" not in "".join(event.text for event in found if isinstance(event, AgentText))


@changeable
def test_after_a_change_it_is_ready_again_and_says_what_is_remembered(backend: Backend) -> None:
    with backend.open(Settings(seed=3)) as conversation:
        events = conversation.events()
        found = listen(conversation, events, 2)
        for voice in (None, ""):
            with pytest.raises(UsageError, match=r"nothing to read|name one"):
                conversation.update(voice=voice, keep_history=True)
        for keep in (True, False):
            conversation.cancel()
            conversation.update(prompt="teacher", keep_history=keep)
            found += listen(conversation, events, 20)
            assert [event.kept for event in found if isinstance(event, Ready)][-1] == keep
        conversation.finish()
        found += list(events)
    check(found)
    assert [event.kept for event in found if isinstance(event, Ready)] == [False, True, False]


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
