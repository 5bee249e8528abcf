"""Live conversations in the history: turns from events, and the sound where that was asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Ended,
    Interrupted,
    Overrun,
    UserText,
)
from personaplex.server import scribe as scribe_module
from personaplex.server.history.store import History
from personaplex.server.scribe import Scribe
from personaplex.server.service import Service
from personaplex.units import FRAME_SAMPLES

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def frame(value: float) -> np.ndarray:
    return np.full(FRAME_SAMPLES, value, np.float32)


async def test_turns_are_what_was_said_between_the_events() -> None:
    history = History()
    scribe = Scribe(history.begin("realtime", persona="sage"), "sage")
    for event in (
        AgentStarted(0),
        AgentText(0, "Good "),
        AgentText(1, "day. "),
        AgentEnded(2),
        UserText(3, "what time", False),
        UserText(4, "what time is it", True),
        AgentText(5, "It is "),
        Interrupted(6),
        AgentText(7, "Never mind."),
    ):
        scribe.saw(event)
    scribe.typed("in writing")
    scribe.saw(AgentText(8, "Yes?"))
    scribe.saw(Ended(9, "closed"))
    scribe.saw(None)
    assert await scribe.transcript.settle()
    said = await history.turns(scribe.transcript.id)
    assert [(turn.role, turn.text, turn.persona) for turn in said] == [
        ("assistant", "Good day.", "sage"),
        ("user", "what time is it", None),
        ("assistant", "It is", "sage"),
        ("assistant", "Never mind.", "sage"),
        ("user", "in writing", None),
        ("assistant", "Yes?", "sage"),
    ]
    await history.close()


@pytest.mark.parametrize("records", [False, True])
async def test_the_sound_of_both_is_of_the_same_time(*, records: bool) -> None:
    history = History()
    scribe = Scribe(history.begin("moshi"), None, records=records)
    user = np.concatenate([frame(0.1), frame(0.2), frame(0.3), frame(0.4)])
    scribe.heard(user[:1000])
    scribe.heard(user[1000:])
    scribe.heard(np.array([np.nan], np.float32))  # refused by the conversation, and not recorded
    scribe.saw(Audio(0, frame(-0.1)))
    scribe.saw(Overrun(1, 1, 1))  # the second frame of the user was shed
    scribe.saw(Audio(1, frame(-0.3)))
    scribe.saw(Audio(2, frame(-0.4)))
    scribe.saw(Audio(3, frame(-0.5)))  # the user has not spoken yet
    scribe.saw(Ended(4, "closed"))
    scribe.transcript.keep()
    assert await scribe.transcript.settle()
    piece = await history.sound(scribe.transcript.id)
    if not records:
        assert piece is None
    else:
        assert piece is not None
        stereo = np.frombuffer(piece[1], "<i2").reshape(-1, FRAME_SAMPLES, 2)[:, 0] / 32767
        assert np.allclose(stereo, [[-0.1, 0.1], [-0.3, 0.3], [-0.4, 0.4], [-0.5, 0.0]], atol=1e-4)
    await history.close()


async def test_who_never_stops_talking_is_written_down_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe_module, "MOST_TEXT", 8)
    history = History()
    scribe = Scribe(history.begin("moshi"), None)
    for n in range(6):
        scribe.saw(AgentText(n, "word "))
    assert await scribe.transcript.settle()
    assert [turn.text for turn in await history.turns(scribe.transcript.id)] == ["word word"] * 3
    await history.close()


async def test_a_services_calls_write_themselves_down(scripted_service: Callable[..., Service]) -> None:
    service = scripted_service()
    with service.open("duplex", service.choose(), client="moshi", persona="aria", record=True) as session:
        events = session.events()
        session.send(np.tile(frame(0.1), 12))
        session.send_text("hello?")
        session.finish()
        for _ in events:
            pass
    with service.open("duplex", service.choose(), client="bench") as unknown:
        assert unknown.scribe is None  # what is no protocol of ours is not kept
    assert session.scribe is not None
    assert await session.scribe.transcript.settle()
    (kept,) = await service.history.list()
    assert (kept.kind, kept.persona) == ("moshi", "aria") and kept.recorded == pytest.approx(12 * 0.08)
    said = [(turn.role, turn.text) for turn in await service.history.turns(kept.id)]
    assert ("user", "hello?") in said and said[-1][0] == "assistant" and "hello there" in said[-1][1]
    await service.history.close()
