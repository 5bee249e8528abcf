"""Who has the floor: turns by voice and by key, and what the agent hears and says in each."""

from __future__ import annotations

import numpy as np
import pytest

from personaplex.conversation import AgentEnded, AgentStarted, AgentText, Audio, Event
from personaplex.live.floor import IN_FLIGHT, PATIENCE_FRAMES, Holder, Key, Open, Turns, Voice
from personaplex.turns import QUIET_FRAMES, UserTurn, VoiceActivity
from personaplex.units import FRAME_SAMPLES

FRAME = np.full(FRAME_SAMPLES, 0.1, np.float32)


def holder(floor: Turns) -> Holder:
    return floor.holder


def audio(frame: int) -> Audio:
    return Audio(frame, FRAME)


def after_utterance(n_frames: int) -> Turns:
    """The user has held the key for `n_frames`, and the agent has heard them."""
    floor = Turns(Key())
    floor.press()
    for _ in range(n_frames):
        floor.hear(FRAME)
    floor.press()
    floor.hear(FRAME)
    for _ in range(n_frames + 1):
        assert floor.next(0, 0) is not None
    return floor


def test_duplex_hands_everything_on() -> None:
    floor = Open()
    floor.hear(FRAME[:480])
    assert np.array_equal(floor.next(99, -99), FRAME[:480]) and floor.next(0, 9) is None  # type: ignore[arg-type]
    assert floor.take(audio(0)) == [audio(0)] and not floor.press()


def test_the_agent_hears_nothing_until_a_turn_is_over_and_then_all_of_it() -> None:
    floor = Turns(Key())
    floor.hear(FRAME)
    floor.press()
    for _ in range(3):
        floor.hear(FRAME)
        assert holder(floor) is Holder.USER and floor.next(0, 3) is None
    floor.press()
    floor.hear(FRAME[:100])
    assert holder(floor) is Holder.AGENT
    floor.hear(FRAME)  # not heard: it is the agent's turn
    assert floor.next(IN_FLIGHT, 3) is None, "no faster than it is answered"
    heard = [pcm for _ in range(4) if (pcm := floor.next(0, 0)) is not None]
    assert (
        all(len(pcm) == FRAME_SAMPLES for pcm in heard) and np.concatenate(heard).astype(bool).sum() == 3 * 1920 + 100
    )
    assert floor.next(0, 0) is None, "enough is on its way to the speaker"
    silence = floor.next(0, 1)
    assert silence is not None and not silence.any()


def test_an_answer_is_played_and_then_it_is_the_users_turn() -> None:
    floor = after_utterance(4)
    for frame in range(5):
        assert floor.take(audio(frame)) == []
    assert floor.take(audio(5)) == [audio(5)]
    assert floor.take(AgentStarted(6)) == [AgentStarted(6)]
    assert floor.take(AgentText(6, "hi")) == [AgentText(6, "hi")]
    assert floor.take(AgentEnded(30)) == [AgentEnded(30)] and holder(floor) is Holder.NOBODY
    assert floor.take(audio(31)) == [] and floor.next(0, 3) is None


def test_a_word_thrown_in_is_no_answer_and_is_not_played() -> None:
    floor = after_utterance(29)
    thrown_in: list[Event] = [AgentStarted(3), audio(4), AgentText(4, "mhm"), AgentEnded(20)]
    assert [floor.take(event) for event in thrown_in] == [[]] * 4
    late: list[Event] = [AgentStarted(28), audio(28)]
    assert [floor.take(event) for event in late] == [[]] * 2
    assert floor.take(audio(30)) == [*late, audio(30)], "a turn that outlasts the user's is played whole"
    floor.take(AgentEnded(30 + QUIET_FRAMES - 1))
    assert holder(floor) is Holder.AGENT, "it was over before the user was"
    floor.take(AgentStarted(50))
    floor.take(AgentEnded(80))
    assert holder(floor) is Holder.NOBODY


def test_an_agent_that_says_nothing_does_not_keep_the_floor() -> None:
    floor = after_utterance(1)
    floor.take(audio(2 + PATIENCE_FRAMES - 1))
    assert holder(floor) is Holder.AGENT
    floor.take(audio(2 + PATIENCE_FRAMES))
    assert holder(floor) is Holder.NOBODY


def test_enter_cuts_the_agent_off_and_begins_the_users_turn() -> None:
    floor = after_utterance(2)
    assert floor.press() and floor.next(0, 9) is None
    floor.hear(FRAME)
    assert holder(floor) is Holder.USER


def test_a_key_that_is_held_when_the_recording_ends_is_released() -> None:
    floor = Turns(Key())
    floor.press()
    floor.hear(FRAME)
    floor.release()
    assert holder(floor) is Holder.AGENT


class Said:
    """A detector that is told what it hears: 0.9 for what sounds."""

    def push(self, pcm: np.ndarray) -> list[float]:
        return [0.9 if piece.any() else 0.1 for piece in np.array_split(pcm, len(pcm) // 768)]


def test_turns_by_voice_keep_what_was_said_before_it_was_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.live.floor.SpeechDetector", Said)
    floor = Turns(Voice(VoiceActivity(silence_seconds=0.5)))
    silence = np.zeros(FRAME_SAMPLES, np.float32)
    for _ in range(100):
        floor.hear(silence)
    for _ in range(12):
        floor.hear(FRAME)
    assert holder(floor) is Holder.USER
    while holder(floor) is Holder.USER:
        floor.hear(silence)
    heard = []
    while (pcm := floor.next(0, 0)) is not None:
        heard.append(pcm)
    assert np.concatenate(heard).astype(bool).sum() == 12 * FRAME_SAMPLES
    assert 12 < len(heard) < 12 + 10, "what was silent long before is not kept"


def test_a_cue_forgets_between_turns() -> None:
    voice = Voice(VoiceActivity())
    voice._turn = UserTurn(True, 3)
    voice.reset()
    assert not voice.hear(np.zeros(FRAME_SAMPLES, np.float32))


def answered(floor: Turns, *events: Event) -> list[Event]:
    return [taken for event in events for taken in floor.take(event)]


@pytest.mark.parametrize("n_before", [0, 7])
def test_what_is_written_is_answered_at_once(n_before: int) -> None:
    """Nobody speaks: the agent's time passes until it has answered, however shortly."""
    floor = Turns(Key())
    floor.reset(n_before)
    assert floor.next(0, 3) is None
    floor.prompt()
    heard = floor.next(0, 3)
    assert holder(floor) is Holder.AGENT and heard is not None and not heard.any()
    events = [AgentStarted(n_before), audio(n_before), AgentText(n_before, "Hi."), AgentEnded(n_before + 3)]
    assert answered(floor, *events) == events
    assert holder(floor) is Holder.NOBODY and floor.next(0, 3) is None


def test_what_is_written_while_somebody_speaks() -> None:
    """The user's turn takes it along; an answer is cut short by the next, and its end is not the end of both."""
    floor = Turns(Key())
    floor.press()
    floor.hear(FRAME)
    floor.prompt()
    assert holder(floor) is Holder.USER and floor.next(0, 3) is None
    floor = after_utterance(3)
    assert answered(floor, AgentStarted(4), audio(4)) == [AgentStarted(4), audio(4)]
    assert holder(floor) is Holder.AGENT
    floor.prompt()
    second = [AgentEnded(5), AgentStarted(5), audio(5), AgentText(5, "Yes."), AgentEnded(5 + QUIET_FRAMES)]
    assert answered(floor, *second[:4]) == second[:4] and holder(floor) is Holder.AGENT
    assert answered(floor, second[4]) == second[4:] and holder(floor) is Holder.NOBODY


def test_what_is_written_into_an_answer_swallows_nothing_of_it() -> None:
    """What was on its way then is played, and that the answer was cut short is told."""
    floor = after_utterance(3)
    assert answered(floor, AgentStarted(4), audio(4))
    while floor.next(0, 3) is not None and floor._n_sent < 9:
        pass
    floor.prompt()
    cut = [AgentText(5, "We"), AgentEnded(6), audio(6)]
    assert answered(floor, *cut) == cut and holder(floor) is Holder.AGENT
