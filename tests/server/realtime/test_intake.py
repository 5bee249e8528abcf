"""Sound on its way in, and messages that are kept for a client that comes back."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from personaplex.server.realtime.intake import AHEAD_FRAMES, Intake
from personaplex.server.realtime.journal import Journal
from personaplex.server.realtime.machine import Do
from personaplex.units import FRAME_SAMPLES

END = Do("end_turn", {}, in_turn=True)
BEGIN = Do("begin_turn", {}, in_turn=True)


def run(intake: Intake, lived: int, *, given: int = 0) -> tuple[list[np.ndarray | Do], int]:
    """What a conversation gets that hears all it is given; and what it has lived then."""
    got: list[np.ndarray | Do] = []
    n = given
    while (item := intake.next(lived)) is not None:
        got.append(item)
        n += len(item) if isinstance(item, np.ndarray) else 0
        assert n <= (lived + AHEAD_FRAMES) * FRAME_SAMPLES, "no more than it has room for"
        lived = n // FRAME_SAMPLES
    return got, lived


def test_crumbs_are_put_together_and_what_is_shed_leaves_nothing_behind() -> None:
    intake = Intake()
    crumbs = np.arange(50_000, dtype=np.float32)
    for crumb in np.split(crumbs, len(crumbs)):
        intake.push(crumb, 0.0)
    assert len(intake._items) < 50
    got, _ = run(intake, 0)
    sound = np.concatenate([item for item in got if isinstance(item, np.ndarray)])
    assert np.array_equal(sound, crumbs)
    for _ in range(200):  # ten times as much as may wait, and nobody hears
        assert len(intake._items) < 100
        intake.push(np.ones(3 * 24_000, np.float32), 0.0)


@settings(max_examples=50)
@given(st.lists(st.one_of(st.integers(1, 40_000), st.just(BEGIN), st.just(END)), max_size=12))
def test_nothing_is_lost_and_what_is_to_be_done_keeps_its_place(what: list[int | Do]) -> None:
    intake, at, expected = Intake(), 0, []
    for item in what:
        if isinstance(item, Do):
            intake.put(item)
            expected.append((item.what, at))
        else:
            assert intake.push(np.arange(at + 1, at + item + 1, dtype=np.float64), 0.0) == 0
            at += item
    got, _ = run(intake, 0)
    sound = np.concatenate([np.zeros(0), *(item for item in got if isinstance(item, np.ndarray))])
    assert np.array_equal(sound[sound > 0], np.arange(1, at + 1)), "all of it, in order"
    n, done = 0, []
    for each in got:
        if isinstance(each, Do):
            done.append((each.what, n))
        else:
            n += int(np.count_nonzero(each))
    assert done == expected and intake.is_empty


def test_a_turn_ends_once_all_of_it_was_heard() -> None:
    intake = Intake()
    intake.push(np.ones(FRAME_SAMPLES * 3 + 5, np.float32), 0.0)
    intake.put(END)
    first, padding = intake.next(0), intake.next(0)
    assert isinstance(first, np.ndarray) and len(first) == 3 * FRAME_SAMPLES + 5
    assert isinstance(padding, np.ndarray) and len(padding) == FRAME_SAMPLES - 5 and not padding.any()
    assert [intake.next(lived) for lived in (0, 1, 3)] == [None] * 3
    assert intake.next(4) == END


def test_what_is_dropped_is_the_turn_that_was_not_ended() -> None:
    intake = Intake()
    intake.push(np.ones(10, np.float32), 0.0)
    intake.put(END)
    intake.put(BEGIN)
    intake.push(np.ones(20, np.float32), 0.0)
    intake.drop()
    got, _ = run(intake, 0)
    assert got[-1] == END and sum(len(item) for item in got if isinstance(item, np.ndarray)) == FRAME_SAMPLES


def test_a_burst_waits_but_a_server_that_is_too_slow_sheds_the_oldest() -> None:
    second = np.ones(24_000, np.float32)
    intake = Intake()
    assert intake.push(np.ones(24_000 * 50, np.float32), 0.0) == 0, "a recording at once"
    run(intake, 0)
    assert intake.push(second, 50.0) == 0 and intake.push(second, 51.0) == 0
    shed = [intake.push(second, 52.0 + at) for at in range(4)]  # nobody takes it
    assert shed[-1] == 24_000 and intake.n_shed == sum(shed)
    assert Intake().push(np.ones(24_000 * 61, np.float32), 0.0) == 24_000, "beyond a minute"


def test_messages_are_numbered_and_kept_up_to_a_size() -> None:
    journal = Journal("x", most_bytes=1000)
    told = [journal.add({"type": "t", "text": "a" * 40}) for _ in range(20)]
    assert [json.loads(kept.text)["server_event_seq"] for kept in told] == list(range(1, 21))
    assert len({json.loads(kept.text)["event_id"] for kept in told}) == 20
    assert journal.after(18) == told[18:] and journal.after(20) == []
    assert journal.after(2) is None, "not kept any more"
    assert journal.after(21) is None, "never told"
    journal.forget(19)
    assert journal.after(19) == told[19:] and journal.after(18) is None
