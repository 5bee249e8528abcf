"""The cascade's turn table under any events in any order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaplex.cascade.turns import (
    BACKCHANNELS,
    Action,
    Agent,
    Asked,
    Cancelled,
    Drop,
    DropListening,
    Final,
    FinishListening,
    Hold,
    Listen,
    Over,
    Partial,
    RanOut,
    Resume,
    Rules,
    Sentence,
    SentenceVoiced,
    State,
    Tell,
    TellText,
    Think,
    Thought,
    Tick,
    TurnEvent,
    Typed,
    Unsaid,
    UserBegan,
    UserEnded,
    Voice,
    Voiced,
    advance,
)

TEXTS = st.sampled_from(["", "uh-huh", "yeah okay", "stop", "hello", "what is the time", "no no I mean the other one"])
OF_A_TURN = (Thought, Voiced, SentenceVoiced, RanOut)


@st.composite
def worlds(draw: st.DrawFn) -> list[tuple[TurnEvent | type, int]]:
    """Events, those of a turn as their type and how many turns ago it was, and frames that pass before each."""
    simple = st.sampled_from([UserBegan(), UserEnded(), Cancelled(), Asked(), Unsaid()])
    spoken = st.one_of(st.builds(Partial, TEXTS), st.builds(Final, TEXTS), st.builds(Typed, TEXTS))
    answer = st.sampled_from([Sentence, *OF_A_TURN])
    return draw(st.lists(st.tuples(st.one_of(simple, spoken, answer), st.integers(0, 9)), max_size=80))


def play(
    world: list[tuple[TurnEvent | type, int]],
    rules: Rules = Rules(),  # noqa: B008 - frozen
) -> list[tuple[State, TurnEvent, State, list[Action]]]:
    """Each step: the state before, what happened, the state after, what was to be done."""
    state, steps, at = State(), [], 0
    for what, wait in world:
        events: list[TurnEvent] = []
        for _ in range(wait if not isinstance(what, type) else 1):
            at += 1
            events.append(Tick(at, at % 4 > 0))
        if isinstance(what, type):
            turn = state.turn - wait // 8  # now and then of an answer that is long over
            events.append(Sentence(turn, "A sentence.") if what is Sentence else what(turn))
        else:
            events.append(what)
        for event in events:
            after, actions = advance(state, event, rules)
            steps.append((state, event, after, actions))
            state = after
    after, actions = advance(state, Over())
    return [*steps, (state, Over(), after, actions)]


def told(actions: list[Action]) -> list[str]:
    return [action.what for action in actions if isinstance(action, Tell)]


RULES = st.builds(Rules, answers=st.booleans(), interrupts=st.booleans())


@settings(max_examples=100)
@given(worlds(), RULES)
def test_every_start_has_its_end(world: list[tuple[TurnEvent | type, int]], rules: Rules) -> None:
    steps = play(world, rules)
    everything = [what for *_, actions in steps for what in told(actions)]
    for started, ended in (("user started", "user stopped"), ("agent started", "agent ended")):
        turns = [what for what in everything if what in (started, ended)]
        assert turns == [started, ended] * (len(turns) // 2)
    for what, then in pairwise([*everything, ""]):
        assert what != "interrupted" or then == "agent ended"
    last = steps[-1][2]
    assert last.agent is Agent.IDLE and not last.user and not last.n_awaited


@settings(max_examples=100)
@given(worlds(), RULES)
def test_nothing_is_said_of_an_answer_that_was_dropped(world: list[tuple[TurnEvent | type, int]], rules: Rules) -> None:
    asked, dropped, was_asked = 0, set(), False
    for before, what, after, actions in play(world, rules):
        was_asked |= isinstance(what, Asked)
        for action in actions:
            match action:
                case Think(turn, text):
                    assert turn == asked + 1 and (text.strip() or was_asked)
                    asked = turn
                case Drop(turn, unheard):
                    assert turn == asked and turn not in dropped
                    assert unheard != before.audible
                    dropped.add(turn)
                case Voice(turn, _):
                    assert turn == asked and turn not in dropped
                case Tell("agent started"):
                    assert asked and asked not in dropped
        if after.agent is not Agent.IDLE:
            assert after.turn == asked and asked not in dropped
        assert after.audible <= (after.agent in (Agent.SPEAKING, Agent.HELD))


@settings(max_examples=100)
@given(worlds(), RULES)
def test_holding_and_listening_are_begun_and_ended_once(
    world: list[tuple[TurnEvent | type, int]], rules: Rules
) -> None:
    held, listens = False, False
    for _, _, after, actions in play(world, rules):
        for action in actions:
            match action:
                case Hold():
                    assert not held
                    held = True
                case Resume():
                    assert held
                    held = False
                case Listen():
                    assert not listens
                    listens = True
                case FinishListening():
                    assert listens
                    listens = False
                case DropListening():
                    listens = False
        assert held == (after.agent is Agent.HELD)
        assert listens == after.user


@settings(max_examples=100)
@given(worlds())
def test_who_is_not_to_be_answered_unasked_is_not_and_who_is_not_to_be_interrupted_is_not(
    world: list[tuple[TurnEvent | type, int]],
) -> None:
    n_asked = n_thought = 0
    for before, what, _, actions in play(world, Rules(answers=False, interrupts=False)):
        n_asked += isinstance(what, Asked | Typed)
        n_thought += sum(isinstance(action, Think) for action in actions)
        assert n_thought <= n_asked
        if any(isinstance(action, Drop) for action in actions):
            assert isinstance(what, Asked | Typed | Cancelled | Over), before
        assert not any(isinstance(action, Hold) for action in actions)


@given(st.lists(st.sampled_from(sorted(BACKCHANNELS)), max_size=4), st.integers(0, 49))
def test_a_backchannel_never_interrupts(words: list[str], n_frames: int) -> None:
    """However long it is spoken, short of what is an interruption without words."""
    state, done = after(State(), *speaking())
    assert told(done) == ["agent started"]
    ticks = [Tick(state.now + 1 + i, True) for i in range(n_frames)]
    state, done = after(state, UserBegan(), Partial(" ".join(words)), *ticks, UserEnded(), Final(" ".join(words)))
    assert state.agent is Agent.SPEAKING and state.audible
    assert not any(isinstance(action, Drop | Think) for action in done)
    state, done = after(state, RanOut(1))
    assert told(done) == ["agent ended"]


def after(state: State, *events: TurnEvent, rules: Rules = Rules()) -> tuple[State, list[Action]]:  # noqa: B008
    done: list[Action] = []
    for event in events:
        state, actions = advance(state, event, rules)
        done += actions
    return state, done


def speaking() -> list[TurnEvent]:
    return [Typed("hello"), Sentence(1, "Good day."), Voiced(1), SentenceVoiced(1), Thought(1)]


def heard(text: str, at: int = 0) -> list[TurnEvent]:
    return [UserBegan(), *[Tick(at + 1 + i, True) for i in range(5)], UserEnded(), Final(text)]


def test_a_question_is_answered_sentence_by_sentence() -> None:
    state, done = after(State(), *heard("what is the time"))
    assert done[-2:] == [TellText("what is the time", True), Think(1, "what is the time")]
    state, done = after(state, Sentence(1, "It is"), Voiced(1))
    assert done == [Voice(1, "It is"), Tell("agent started")] and state.thinks
    state, done = after(state, SentenceVoiced(1), RanOut(1))
    assert state.agent is Agent.SPEAKING and not done, "more may come"
    state, done = after(state, Sentence(1, "noon."), Thought(1), RanOut(1), SentenceVoiced(1), RanOut(1))
    assert state.agent is Agent.IDLE and done == [Voice(1, "noon."), Tell("agent ended")]


def test_enough_words_for_long_enough_interrupt_and_are_answered() -> None:
    state, _ = after(State(), *speaking())
    state, done = after(state, UserBegan(), Tick(1, True), Partial("no I"))
    assert state.agent is Agent.SPEAKING, "too short so far"
    state, done = after(state, *[Tick(i, True) for i in range(2, 6)])
    assert done == [Drop(1, unheard=False), Tell("interrupted"), Tell("agent ended")]
    state, done = after(state, UserEnded(), Final("no I meant tomorrow"))
    assert done[-1] == Think(2, "no I meant tomorrow")


def test_a_false_interruption_resumes() -> None:
    state, _ = after(State(), *speaking())
    state, done = after(state, UserBegan(), *[Tick(i, True) for i in range(1, 12)])
    assert state.agent is Agent.HELD and Hold() in done
    state, done = after(state, UserEnded(), Final(""))
    assert state.agent is Agent.SPEAKING and done[-1] == Resume()


@pytest.mark.parametrize(
    ("words", "answered"), [("stop", False), ("wait stop", False), ("wait what about sunday", True)]
)
def test_a_stop_is_enough_and_needs_no_answer(words: str, answered: bool) -> None:
    state, _ = after(State(), *speaking())
    state, done = after(state, *heard(words))
    assert Drop(1, unheard=False) in done
    assert (state.agent is Agent.THINKING) == answered


def test_pauses_are_no_speech() -> None:
    state, _ = after(State(), *speaking())
    state, done = after(state, UserBegan(), Tick(1, True), Partial("no I mean"), *[Tick(i) for i in range(2, 90)])
    assert state.agent is Agent.SPEAKING and not any(isinstance(action, Hold | Drop) for action in done)


def test_speech_for_long_interrupts_without_words() -> None:
    state, _ = after(State(), *speaking())
    state, done = after(state, UserBegan(), *[Tick(i, True) for i in range(1, 60)])
    assert [type(action) for action in done if isinstance(action, Hold | Drop | Resume)] == [Hold, Drop, Resume]


def test_who_goes_on_before_the_answer_is_answered_once() -> None:
    state, _ = after(State(), *heard("I would like"))
    state, done = after(state, *heard("a pizza", at=10))
    assert done[-2:] == [Drop(1, unheard=True), Think(2, "I would like a pizza")]
    state, done = after(State(), *heard("hello"), UserBegan(), Sentence(1, "Hi."), Voiced(1))
    assert state.agent is Agent.HELD and "agent started" not in told(done), "nobody is talked over"
    state, done = after(state, UserEnded(), Final("um"))
    assert told(done)[-1] == "agent started" and done[-1] == Resume()


def test_a_transcript_that_never_comes_is_empty() -> None:
    state, _ = after(State(), *speaking(), UserBegan(), *[Tick(i, True) for i in range(1, 12)], UserEnded())
    assert state.agent is Agent.HELD
    state, done = after(state, *[Tick(i, True) for i in range(12, 150)])
    assert state.agent is Agent.SPEAKING and done == [DropListening(), Resume()]
    assert after(state, Final("too late"))[1] == []


def test_an_utterance_without_end_is_ended() -> None:
    _, done = after(State(), UserBegan(), *[Tick(i, True) for i in range(1, 751)])
    assert done[-2:] == [Tell("user stopped"), FinishListening()]


def test_an_answer_without_a_sound_is_over() -> None:
    for events in (
        [Thought(1)],
        [Sentence(1, "x"), Thought(1), SentenceVoiced(1)],
        [Sentence(1, "x"), SentenceVoiced(1), Thought(1)],
    ):
        state, done = after(State(), Typed("hello"), *events)
        assert state.agent is Agent.IDLE and not told(done)


def test_a_cancelled_answer_is_over() -> None:
    state, done = after(State(), *speaking(), Cancelled())
    assert state.agent is Agent.IDLE and done[-3:] == [Drop(1, unheard=False), Tell("interrupted"), Tell("agent ended")]
    assert after(state, Sentence(1, "More."), Voiced(1), RanOut(1), Cancelled())[1] == []


def test_what_was_said_waits_for_who_asks() -> None:
    quiet = Rules(answers=False)
    state, done = after(State(), *heard("what is the time"), rules=quiet)
    assert not any(isinstance(action, Think) for action in done) and state.heard == "what is the time"
    state, done = after(state, Asked(), rules=quiet)
    assert done == [Think(1, "what is the time")] and not state.heard
    state, done = after(State(), UserBegan(), Asked(), UserEnded(), rules=quiet)
    assert not any(isinstance(action, Think) for action in done), "it is not understood yet"
    state, done = after(state, Final("hello"), rules=quiet)
    assert done[-1] == Think(1, "hello")


def test_who_speaks_into_an_answer_that_nothing_interrupts_is_answered_after_it() -> None:
    patient = Rules(interrupts=False)
    state, _ = after(State(), *speaking(), rules=patient)
    state, done = after(state, *heard("no I meant tomorrow"), rules=patient)
    assert state.agent is Agent.SPEAKING and not any(isinstance(action, Think | Hold | Drop) for action in done)
    state, done = after(state, RanOut(1), rules=patient)
    assert done == [Tell("agent ended"), Think(2, "no I meant tomorrow")]


def test_what_is_not_meant_is_forgotten() -> None:
    state, done = after(State(), UserBegan(), Partial("what"), Unsaid(), Final("what"))
    assert done[-2:] == [DropListening(), Tell("user stopped")] and state == State(partial="")
