"""One conversation on the host: what is shed, and who is told to have spoken."""

from __future__ import annotations

import numpy as np
import pytest

from personaplex import PersonaPlex, Sampling, Settings
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Ended,
    Event,
    Interrupted,
    Overrun,
    Ready,
)
from personaplex.errors import Busy
from personaplex.runtime.seat import Heard, Seat
from personaplex.runtime.slots import Lease, SlotTable
from personaplex.text import TextStream
from personaplex.turns import QUIET_FRAMES, UserTurn
from personaplex.units import FRAME_SAMPLES

PADDING = (0, 3)
LOUD, QUIET = np.full(FRAME_SAMPLES, 0.1, np.float32), np.zeros(FRAME_SAMPLES, np.float32)


@pytest.fixture
def seat(model: PersonaPlex) -> Seat:
    return Seat(Lease(0, 0), Settings(), 1, Sampling(), TextStream(model.tokenizer), PADDING)


def events(seat: Seat) -> list[Event]:
    seat.end("closed")
    found = []
    while (event := seat.mailbox.get(0)) is not None:
        found.append(event)
    return found


def heard(pcm: np.ndarray, text: int = 3, valid: bool = True) -> Heard:
    return Heard(pcm, np.array([text, *[7] * 16], np.int32), valid, 2.0)


def test_the_oldest_unheard_frames_are_shed_and_counted(seat: Seat) -> None:
    numbered = np.repeat(np.arange(10, dtype=np.float32), FRAME_SAMPLES)
    seat.take_in(numbered[: 4 * FRAME_SAMPLES], 5)
    assert seat.n_dropped == 0
    seat.take_in(numbered[4 * FRAME_SAMPLES : -100], 5)
    assert [frame[0] for frame in seat.inbox] == [4, 5, 6, 7, 8]
    seat.take_in(numbered[-100:], 5)
    assert [frame[0] for frame in seat.inbox] == [5, 6, 7, 8, 9] and len(seat.unheard) == 5 * FRAME_SAMPLES
    seat.begin()
    seat.take_in(numbered[: 2 * FRAME_SAMPLES], 5, dropped=7)
    assert events(seat)[:-1] == [Ready(0, 1), Overrun(0, 5, 5), Overrun(0, 9, 14)]  # nothing is told before Ready


def turns(seat: Seat, script: str) -> list[tuple[int, type[Event]]]:
    """A agent, U user, B both, T text only, . nobody; the user is heard before the agent's frame is told."""
    for at, who in enumerate(script):
        speaks = who in "UB"
        if speaks and not seat.user.speaking:
            seat.user_began = at
        seat.user = UserTurn(speaks)
        seat.tell(heard(LOUD if who in "AB" else QUIET, 50 if who == "T" else 3))
    return [(e.frame, type(e)) for e in events(seat) if not isinstance(e, (Audio, AgentText, Ended))]


def test_a_turn_that_the_user_cut_short_is_told_as_interrupted(seat: Seat) -> None:
    end = QUIET_FRAMES
    assert turns(seat, "AABB" + "U" * end) == [(0, AgentStarted), (3 + end, Interrupted), (3 + end, AgentEnded)]


@pytest.mark.parametrize(
    "script",
    [
        "AAAA" + "U" * QUIET_FRAMES,  # the user answered after the end
        "ABAA" + "." * QUIET_FRAMES,  # a word in between, and the agent went on
        "UBBB" + "U" * QUIET_FRAMES,  # it was the agent that spoke into the user's turn
        "TAAT" + "." * QUIET_FRAMES,
    ],
)
def test_and_others_are_not(seat: Seat, script: str) -> None:
    start = 1 if script[0] == "U" else 0
    assert turns(seat, script) == [(start, AgentStarted), (3 + QUIET_FRAMES, AgentEnded)]


def test_before_the_first_frame_there_is_no_text(seat: Seat) -> None:
    seat.tell(heard(QUIET, 50, valid=False))
    assert not seat.agent.speaking and not any(isinstance(event, AgentText) for event in events(seat))


def test_a_lease_ends_once_and_the_next_is_another() -> None:
    table = SlotTable(2)
    first, second = table.lease(), table.lease()
    with pytest.raises(Busy, match="2 of 2"):
        table.lease()
    assert table.release(first) and not table.release(first) and table.in_use == 1
    again = table.lease()
    assert again.slot == first.slot and again != first
    assert table.holds(again) and table.holds(second) and not table.holds(first)
    assert not table.release(first) and table.holds(again)
