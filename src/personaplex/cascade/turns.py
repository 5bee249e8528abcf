"""Whose turn it is: a pure table, (state, event) -> (state, actions). No clock, no queue, no engine in here.

    agent     | what it means                        | leaves it
    ----------|--------------------------------------|-----------------------------------------------------------------
    IDLE      | listens                              | a final transcript or typed text -> THINKING
    THINKING  | an answer is made, nothing audible   | first sound -> SPEAKING (HELD if the user speaks); nothing to say
              |                                      | -> IDLE; the user says more -> THINKING anew, about all of it
    SPEAKING  | audible                              | all was played -> IDLE; the user speaks for long enough -> HELD;
              |                                      | enough words -> interrupted
    HELD      | silent, may go on where it was       | a backchannel, or nothing was said -> SPEAKING; enough words, or
              |                                      | speech for long -> interrupted

"Interrupted" is IDLE, or THINKING about what the user said. Times are frames of 80 ms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

from personaplex.units import FRAME_RATE

BACKCHANNELS = frozenset(
    "ah aha alright hm hmm huh mhm mm mmhm oh ok okay really right sure uh uhhuh um uhuh well wow yeah yep yes".split()
)
"""Words that say "go on": they take nobody's turn while somebody speaks."""

STOPS = frozenset("enough quiet silence stop wait".split())
"""One of these is enough, whatever the number of words."""


@dataclass(frozen=True)
class Rules:
    """When the user's speech over the agent's is an interruption: so many words, in so many seconds at least.

    Seconds are of voice, without pauses. After `hold_seconds` of it the agent is silent until that is known; after
    `certain_seconds` it is one, words or not.
    A transcript that takes longer than `transcript_seconds` is taken as empty; an utterance ends after
    `longest_seconds`, silence or not. Not `answers`, what was said waits until an answer is asked for; not
    `interrupts`, the agent speaks on, and takes up what was said when it has ended.
    """

    min_words: int = 2
    min_seconds: float = 0.4
    hold_seconds: float = 0.6
    certain_seconds: float = 4.0
    transcript_seconds: float = 10.0
    longest_seconds: float = 60.0
    answers: bool = True
    interrupts: bool = True


class Agent(Enum):
    """What the agent does."""

    IDLE = "idle"
    THINKING = "thinking"
    SPEAKING = "speaking"
    HELD = "held"


@dataclass(frozen=True)
class State:
    """Everything that the next decision depends on.

    `turn` numbers the answers; `audible`: something of the last was. `thinks`, `n_unvoiced`: whether more sentences may
    come, and how many are not wholly made into sound. The user speaks since frame `since`, with voice in `n_voiced`.
    `n_awaited` transcripts are due by frame `due`. `heard` is what the user said and nobody took up, `partial` what
    they are saying, `asked` what is being answered unheard. `wanted`: an answer was asked for and waits for them.
    """

    agent: Agent = Agent.IDLE
    turn: int = 0
    audible: bool = False
    thinks: bool = False
    n_unvoiced: int = 0
    user: bool = False
    since: int = 0
    n_voiced: int = 0
    now: int = 0
    n_awaited: int = 0
    due: int = 0
    heard: str = ""
    partial: str = ""
    asked: str = ""
    wanted: bool = False


# What happens.


class UserBegan(NamedTuple):
    """The user begins to speak."""


class UserEnded(NamedTuple):
    """The user has been silent for so long that the turn is over."""


class Tick(NamedTuple):
    """Frame `at` begins; the user's sound just before it was `voiced`."""

    at: int
    voiced: bool = False


class Partial(NamedTuple):
    """What the user has said so far in this utterance."""

    text: str


class Final(NamedTuple):
    """All that the user said in an utterance that was finished; empty for nothing, and when recognition failed."""

    text: str


class Typed(NamedTuple):
    """The user wrote something."""

    text: str


class Asked(NamedTuple):
    """Somebody wants an answer now, to what was said so far."""


class Unsaid(NamedTuple):
    """What the user is saying is to be forgotten."""


class Cancelled(NamedTuple):
    """Somebody wants the agent to be silent."""


class Sentence(NamedTuple):
    """The answer `turn` has another sentence."""

    turn: int
    text: str


class Thought(NamedTuple):
    """The answer `turn` has no more sentences, because it is complete or the language model failed."""

    turn: int


class Voiced(NamedTuple):
    """Sound of the answer `turn` can be played."""

    turn: int


class SentenceVoiced(NamedTuple):
    """A sentence of the answer `turn` is wholly made into sound, or never will be."""

    turn: int


class RanOut(NamedTuple):
    """All sound there is of the answer `turn` was played."""

    turn: int


class Over(NamedTuple):
    """The conversation ends."""


TurnEvent: TypeAlias = (
    UserBegan | UserEnded | Tick | Partial | Final | Typed | Asked | Unsaid | Cancelled | Sentence | Thought | Voiced
    | SentenceVoiced | RanOut | Over
)  # fmt: skip


# What is to be done.


class Listen(NamedTuple):
    """Begin an utterance, with the sound just before."""


class FinishListening(NamedTuple):
    """End it; a `Final` must follow."""


class DropListening(NamedTuple):
    """No transcript is wanted any more."""


class Think(NamedTuple):
    """Begin the answer `turn` to a text; where that is empty, to what was said before."""

    turn: int
    text: str


class Voice(NamedTuple):
    """Make a sentence of the answer `turn` into sound, after those before."""

    turn: int
    text: str


class Drop(NamedTuple):
    """End all work on the answer `turn` and play no more of it; `unheard`: as if it had not been asked either."""

    turn: int
    unheard: bool


class Hold(NamedTuple):
    """Play nothing for now."""


class Resume(NamedTuple):
    """Play on from there."""


class Tell(NamedTuple):
    """Tell whoever holds the conversation."""

    what: Literal["user started", "user stopped", "agent started", "agent ended", "interrupted"]


class TellText(NamedTuple):
    """Tell what the user said."""

    text: str
    final: bool


Action: TypeAlias = (
    Listen | FinishListening | DropListening | Think | Voice | Drop | Hold | Resume | Tell | TellText
)  # fmt: skip
Step: TypeAlias = tuple[State, list[Action]]


def advance(state: State, event: TurnEvent, rules: Rules = Rules()) -> Step:  # noqa: PLR0911 - a table
    """What follows from `event`."""
    match event:
        case UserBegan() if not state.user:
            return replace(state, user=True, since=state.now, n_voiced=0, partial=""), [Tell("user started"), Listen()]
        case UserEnded() if state.user:
            due = state.now + _frames(rules.transcript_seconds)
            ended = replace(state, user=False, n_awaited=state.n_awaited + 1, due=due)
            return ended, [Tell("user stopped"), FinishListening()]
        case Tick(at, voiced):
            return _tick(replace(state, now=at, n_voiced=state.n_voiced + voiced), rules)
        case Partial(text) if state.user:
            return _then(replace(state, partial=text), [TellText(text, False)] if text else [], rules)
        case Final(text) if state.n_awaited:
            return _final(state, text.strip(), rules)
        case Typed(text) if text.strip():
            return _think(*_drop(state), _joined(state.asked, text.strip()))
        case Asked() if state.user or state.n_awaited:
            return replace(state, wanted=True), []
        case Asked():
            return _think(*_drop(state), _joined(state.asked, state.heard))
        case Unsaid() if state.user:
            forgotten = replace(state, user=False, partial="", n_awaited=0)
            settled, actions = _settle(forgotten, rules)
            return settled, [DropListening(), Tell("user stopped"), *actions]
        case Cancelled():
            dropped, actions = _drop(state)
            return replace(dropped, heard="", asked="", wanted=False), actions
        case Over():
            return _over(state)
        case Sentence() | Thought() | Voiced() | SentenceVoiced() | RanOut() if event.turn == state.turn:
            return _answer(state, event, rules)
    return state, []


def _tick(state: State, rules: Rules) -> Step:
    if state.user and state.now - state.since >= _frames(rules.longest_seconds):
        return advance(state, UserEnded(), rules)
    if state.n_awaited and not state.user and state.now >= state.due:
        settled, actions = _settle(replace(state, n_awaited=0), rules)
        return settled, [DropListening(), *actions]
    if (
        rules.interrupts
        and state.agent is Agent.SPEAKING
        and state.user
        and state.n_voiced >= _frames(rules.hold_seconds)
    ):
        return _then(replace(state, agent=Agent.HELD), [Hold()], rules)
    return _then(state, [], rules)


def _then(state: State, actions: list[Action], rules: Rules) -> Step:
    """Interrupt the agent if the user's speech has become an interruption."""
    certain = state.n_voiced >= _frames(rules.certain_seconds)
    enough = state.n_voiced >= _frames(rules.min_seconds) and _takes_the_turn(
        _joined(state.heard, state.partial), rules
    )
    if rules.interrupts and state.user and state.audible and (certain or enough):
        dropped, more = _drop(state)
        return dropped, [*actions, *more]
    return state, actions


def _final(state: State, text: str, rules: Rules) -> Step:
    heard = replace(
        state,
        n_awaited=state.n_awaited - 1,
        heard=_joined(state.heard, text),
        partial="" if not state.user else state.partial,
    )
    told: list[Action] = [TellText(text, True)] if text else []
    if heard.user or heard.n_awaited:
        return _then(heard, told, rules)
    settled, actions = _settle(heard, rules)
    return settled, [*told, *actions]


def _settle(state: State, rules: Rules) -> Step:
    """The user is silent and all of it was understood: decide what it was."""
    heard = state.heard
    if state.agent is Agent.IDLE:
        return _reply(state, [], heard, rules) if heard or state.wanted else (state, [])
    if state.audible and not rules.interrupts:
        return state, []
    if state.audible and _takes_the_turn(heard, rules):
        dropped, actions = _drop(state)
        only_stop = all(word in STOPS for word in _words(heard))
        return (replace(dropped, heard=""), actions) if only_stop else _reply(dropped, actions, heard, rules)
    if not state.audible and any(word not in BACKCHANNELS for word in _words(heard)):
        asked = state.asked
        return _think(*_drop(state), _joined(asked, heard)) if rules.answers or state.wanted else _go_on(state)
    return _go_on(replace(state, heard=""))


def _reply(state: State, actions: list[Action], text: str, rules: Rules) -> Step:
    """Answer the user, or where nobody is answered unasked remember what they said."""
    if rules.answers or state.wanted:
        return _think(state, actions, text)
    return replace(state, heard=text), actions


def _go_on(state: State) -> Step:
    if state.agent is not Agent.HELD:
        return state, []
    started: list[Action] = [] if state.audible else [Tell("agent started")]
    return replace(state, agent=Agent.SPEAKING, audible=True, asked=""), [*started, Resume()]


def _think(state: State, actions: list[Action], text: str) -> Step:
    turn = state.turn + 1
    begun = replace(
        state,
        agent=Agent.THINKING,
        turn=turn,
        audible=False,
        thinks=True,
        n_unvoiced=0,
        heard="",
        asked=text,
        wanted=False,
    )
    return begun, [*actions, Think(turn, text)]


def _drop(state: State) -> Step:
    """End the answer, if there is one."""
    if state.agent is Agent.IDLE:
        return state, []
    actions: list[Action] = [Drop(state.turn, unheard=not state.audible)]
    if state.agent is Agent.HELD:
        actions.append(Resume())
    if state.audible:
        actions += [Tell("interrupted"), Tell("agent ended")]
    return replace(state, agent=Agent.IDLE, audible=False, thinks=False, n_unvoiced=0, asked=""), actions


def _over(state: State) -> Step:
    dropped, actions = _drop(state)
    actions = [action for action in actions if action != Tell("interrupted")]
    if state.user or state.n_awaited:
        actions.append(DropListening())
    if state.user:
        actions.append(Tell("user stopped"))
    return replace(dropped, user=False, n_awaited=0, heard="", partial="", wanted=False), actions


def _answer(  # noqa: PLR0911
    state: State, event: Sentence | Thought | Voiced | SentenceVoiced | RanOut, rules: Rules
) -> Step:
    if state.agent is Agent.IDLE:
        return state, []
    match event:
        case Sentence(turn, text) if state.thinks:
            return replace(state, n_unvoiced=state.n_unvoiced + 1), [Voice(turn, text)]
        case Thought():
            return _done(replace(state, thinks=False), rules)
        case SentenceVoiced() if state.n_unvoiced:
            return _done(replace(state, n_unvoiced=state.n_unvoiced - 1), rules)
        case Voiced() if state.agent is Agent.THINKING:
            if rules.interrupts and (state.user or state.n_awaited):
                return replace(state, agent=Agent.HELD), [Hold()]
            return replace(state, agent=Agent.SPEAKING, audible=True, asked=""), [Tell("agent started")]
        case RanOut() if state.agent is Agent.SPEAKING and not state.thinks and not state.n_unvoiced:
            return _rest(replace(state, audible=False), [Tell("agent ended")], rules)
    return state, []


def _done(state: State, rules: Rules) -> Step:
    """An answer of which nothing could be said is over without a sound."""
    if state.agent is Agent.THINKING and not state.thinks and not state.n_unvoiced:
        return _rest(replace(state, asked=""), [], rules)
    return state, []


def _rest(state: State, actions: list[Action], rules: Rules) -> Step:
    """The answer is over: what the user said into it, and was not to interrupt it, is taken up now."""
    idle = replace(state, agent=Agent.IDLE)
    if idle.user or idle.n_awaited:
        return idle, actions
    settled, more = _settle(idle, rules)
    return settled, [*actions, *more]


def _takes_the_turn(text: str, rules: Rules) -> bool:
    words = [word for word in _words(text) if word not in BACKCHANNELS]
    return len(words) >= rules.min_words or any(word in STOPS for word in words)


def _words(text: str) -> list[str]:
    return [word.replace("-", "").replace("'", "") for word in re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())]


def _joined(*texts: str) -> str:
    return " ".join(filter(None, texts))


def _frames(seconds: float) -> int:
    return round(seconds * FRAME_RATE)
