"""Questions asked through the seam, of an agent that follows a script: when they come, what counts as the answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from personaplex.conversation import (
    AgentText,
    Audio,
    Capabilities,
    Conversation,
    Degenerate,
    Ended,
    Error,
    Event,
    EventStream,
    Mailbox,
    Overrun,
    Ready,
    Settings,
)
from personaplex.errors import ConversationError, EngineError, PersonaError, PersonaPlexError
from personaplex.evaluate.prompts.asking import Answer, Asked, ask, ask_all
from personaplex.evaluate.prompts.evaluation import evaluate, seeds_of
from personaplex.evaluate.prompts.expectation import Expectation
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.prompts.table import DEGENERATE, DELAY, EARLY, NOTHING, WER, Outcome, by_chance, rows
from personaplex.evaluate.result import Failure, Result
from personaplex.report.comparison import compare
from personaplex.units import FRAME_SAMPLES

LOUD, SILENT = np.full(FRAME_SAMPLES, 0.1, np.float32), np.zeros(FRAME_SAMPLES, np.float32)
QUESTION = Question("open", say="open?", expectation=Expectation((("seven",),)))
PCM = np.concatenate([np.full(10 * FRAME_SAMPLES, 0.2, np.float32), np.zeros(5 * FRAME_SAMPLES, np.float32)])
"""Ten frames of a question and five of silence behind it."""


class Agent:
    """Greets in frames 3 to 9 if it `greets`, answers `words` five frames after the question's last frame."""

    def __init__(
        self,
        words: str = "at seven",
        *,
        greets: bool = False,
        greeting: range = range(3, 10),
        makes_sound: bool = True,
        breaks: Mapping[int, Event] | None = None,
        waits_for_another: bool = False,
    ) -> None:
        self.words, self.greets, self.breaks = words, greets, breaks or {}
        self.greeting, self.makes_sound = greeting, makes_sound
        self.opened: list[Settings] = []
        self.at_once = self.most_at_once = 0
        self.waits_for_another, self.met = waits_for_another, threading.Event()
        self.lock = threading.Lock()

    def open(self, settings: Settings = Settings()) -> Conversation:  # noqa: B008 - frozen
        self.opened.append(settings)
        return _Call(self, settings)  # type: ignore[return-value] # no more of it is used


class _Call:
    capabilities = Capabilities(full_duplex=True)

    def __init__(self, agent: Agent, settings: Settings) -> None:
        self._agent, self._settings = agent, settings
        self._mailbox = Mailbox()
        self._n = 0
        self._last_loud: int | None = None
        self._mailbox.put(Ready(0, 0))

    def send(self, pcm: np.ndarray) -> None:
        at, self._n = self._n, self._n + 1
        if event := self._agent.breaks.get(at):
            self._mailbox.put(event)
        if pcm.any():
            self._last_loud = at
        greets = self._agent.greets and at in self._agent.greeting
        since = None if self._last_loud is None else at - self._last_loud
        answers = self._agent.makes_sound and since in (5, 6, 7)
        self._mailbox.put(Audio(at, LOUD if greets or answers else SILENT))
        if self._agent.greets and at == 4:
            self._mailbox.put(AgentText(at, "hello "))
        if since in (5, 6) and self._agent.words:
            words = self._agent.words.split()
            half = len(words) // 2
            said = words[:half] if since == 5 else words[half:]
            self._mailbox.put(AgentText(at, "".join(f" {word}" for word in said)))

    def events(self) -> EventStream:
        return EventStream(self._mailbox, self)

    def __enter__(self) -> Self:
        with self._agent.lock:
            self._agent.at_once += 1
            self._agent.most_at_once = max(self._agent.most_at_once, self._agent.at_once)
            if self._agent.at_once > 1:
                self._agent.met.set()
        if self._agent.waits_for_another:
            self._agent.met.wait(10)
        if self._settings.voice == "NOBODY":
            raise PersonaError("unknown voice NOBODY")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._agent.lock:
            self._agent.at_once -= 1


def asked(agent: Agent, question: Question = QUESTION) -> Answer:
    return ask(agent, question, PCM, Settings(), 1)


def test_who_waits_asks_a_second_after_the_greeting() -> None:
    answer = asked(Agent(greets=True))
    assert answer.began == 10 + 12 + 2, "frames 3 to 9 greet, 12 are quiet, 2 were on their way"
    assert answer.ended == answer.began + 10, "what is silent behind the question belongs to the answer"
    assert answer.said == "at seven" and answer.all_said == "hello  at seven"
    assert answer.delay_ms == 4 * 80, "the first word comes in the fifth frame after the last of the question"


def test_who_waits_for_nobody_asks_after_four_seconds() -> None:
    answer = asked(Agent())
    assert answer.began == 50 + 2
    assert answer.said == "at seven", "the quiet before the question ends nothing"


def test_who_does_not_wait_asks_at_once() -> None:
    answer = asked(Agent(), replace(QUESTION, waits=False))
    assert answer.began == 0 and answer.said == "at seven"
    assert np.array_equal(answer.user[: len(PCM)], PCM)


def test_it_ends_when_the_agent_has_been_quiet_for_two_seconds() -> None:
    answer = asked(Agent(), replace(QUESTION, waits=False))
    n_frames = len(answer.agent) // FRAME_SAMPLES
    assert n_frames == 10 + 4 + 3 + 25, "question, delay, answer, and 25 quiet frames"
    assert len(answer.user) == len(answer.agent)
    assert np.array_equal(answer.sound, answer.agent)


def test_who_never_answers_is_waited_for_and_no_longer() -> None:
    answer = asked(Agent("", makes_sound=False), replace(QUESTION, waits=False))
    assert answer.said == "" and answer.delay_ms is None
    assert len(answer.agent) // FRAME_SAMPLES == 10 + 50
    answer = asked(Agent("", makes_sound=False), replace(QUESTION, waits=False, listen_seconds=0.24))
    assert len(answer.agent) // FRAME_SAMPLES == 10 + 3


def test_who_talks_without_end_is_listened_to_for_as_long_as_was_said() -> None:
    agent = Agent(greets=True, greeting=range(0, 1000))
    answer = asked(agent, replace(QUESTION, listen_seconds=2))
    assert answer.began == 190 + 2, "after 15 s the user speaks into it"
    assert len(answer.agent) // FRAME_SAMPLES == answer.ended + 25


def test_text_is_counted_from_the_question_on() -> None:
    answer = replace(asked(Agent(greets=True)), text=((4, "hello "), (23, "well "), (24, "at"), (30, " seven")))
    assert answer.began == 24
    assert answer.said == "at seven"
    assert answer.delay_ms == (24 - 34) * 80, "begun before the question's end, and not hidden"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Error(5, PersonaError("no such voice")), "no such voice"),
        (Ended(5, "shutdown"), "ended before its end"),
        (Overrun(5, 2, 2), "2 frames of the question were not heard"),
    ],
)
def test_what_ends_a_conversation_is_raised(event: Event, message: str) -> None:
    with pytest.raises(PersonaPlexError, match=message):
        asked(Agent(breaks={20: event}))


def test_signs_of_the_backend_are_kept() -> None:
    assert asked(Agent(breaks={20: Degenerate(20, "repetition")})).degenerate == ("repetition",)


def one(question: Question, n: int, voice: str | None = None) -> Asked:
    return Asked(question, PCM, lambda seed: Settings(voice, seed=seed), range(1, n + 1))


def test_many_are_asked_at_a_time_and_answered_in_order() -> None:
    agent = Agent(waits_for_another=True)
    found = list(ask_all(agent, [one(QUESTION, 5), one(replace(QUESTION, name="b"), 2)], slots=3))
    assert [(answer.question.name, answer.seed) for answer in found if isinstance(answer, Answer)] == [
        *(("open", seed) for seed in range(1, 6)),
        ("b", 1),
        ("b", 2),
    ]
    assert 1 < agent.most_at_once <= 3
    assert sorted(settings.seed or 0 for settings in agent.opened) == [1, 1, 2, 2, 3, 4, 5]


def test_what_fails_is_a_failure_and_stays_in_the_denominator() -> None:
    lost = replace(QUESTION, name="lost")
    result = evaluate(Agent(), [one(QUESTION, 3), one(lost, 1, "NOBODY")], 2, None, {"model": "script"})
    assert result.failures == [Failure("lost (seed 1)", "unknown voice NOBODY")]
    by_name = {row.what: row for row in result.rows}
    assert (by_name["answer right"].value, by_name["answer right"].n) == (0.75, 4)
    assert (by_name["open: answer right"].value, by_name["open: answer right"].n) == (1.0, 3)
    assert (by_name["lost: answer right"].value, by_name["lost: answer right"].n) == (0.0, 1)
    assert by_name["nothing is said"].n == 3
    assert by_name["first word after the question's end, median"].value == 320


class Ear:
    """Hears every answer alike, but for those that it cannot bear: by number, from 0."""

    name = "script"

    def __init__(self, *broken: int, text: str = "at seven") -> None:
        self.broken, self.text, self.n_heard = broken, text, 0

    def hear(self, pcm: np.ndarray) -> str:
        at, self.n_heard = self.n_heard, self.n_heard + 1
        if at in self.broken:
            raise EngineError("the recogniser broke down")
        return self.text

    def close(self) -> None: ...


def test_what_cannot_be_heard_is_a_failure_and_the_rest_is_counted() -> None:
    result = evaluate(Agent(), [one(QUESTION, 4)], 2, Ear(1), {})
    assert result.failures == [Failure("open (seed 2)", "the recogniser broke down")] and result.error is None
    by_name = {row.what: row for row in result.rows}
    for what in ("answer right", "answer right as heard"):
        assert (by_name[what].value, by_name[what].n) == (0.75, 4)
    assert by_name["nothing is said"].n == 3


def test_when_nothing_is_heard_the_result_says_so() -> None:
    result = evaluate(Agent(), [one(QUESTION, 2)], 2, Ear(0, 1), {})
    assert isinstance(result.error, ConversationError) and "the recogniser broke down" in str(result.error)
    assert (result.rows[0].value, result.rows[0].n, len(result.failures)) == (0.0, 2, 2)


def test_what_had_no_sound_counts_too() -> None:
    gone = [Failure("gone (seed 1)", "a.wav does not exist"), Failure("gone (seed 2)", "a.wav does not exist")]
    result = evaluate(Agent(), [one(QUESTION, 2)], 2, None, {}, gone)
    by_name = {row.what: row for row in result.rows}
    assert (by_name["answer right"].value, by_name["answer right"].n) == (0.5, 4)
    assert by_name["gone: answer right"].n == 2


def outcome(name: str, word: str, said: str, heard: str | None = None, delay: float | None = 80.0) -> Outcome:
    return Outcome(Question(name, expectation=Expectation(((word,),))), 1, said, heard, delay)


def test_shuffled_answers_are_chance() -> None:
    found = [outcome("a", "seven", "seven"), outcome("b", "nine", "nine"), outcome("c", "blue", "nine or blue")]
    assert list(by_chance(found)) == [False, True, False]
    same = [outcome("a", "seven", "seven"), outcome("a", "seven", "nine")]
    assert list(by_chance(same)) == [], "an answer to the same question may be right"


def test_rows_of_hand_made_outcomes() -> None:
    found = [
        outcome("a", "seven", "at seven", "at seven", 160),
        outcome("a", "seven", "at nine", "at seven", 80),
        outcome("b", "blue", "", "", None),
        outcome("b", "blue", "it is blue", "it is glue", -80),
    ]
    by_name = {row.what: row for row in rows(found, {"a": 2, "b": 2})}
    hears_voices = [*found[:2], outcome("b", "blue", "", "the the the", None), found[3]]
    more = {row.what: row for row in rows(hears_voices, {"a": 2, "b": 2})}
    assert more["what is heard against what is said: WER"].value == pytest.approx(5 / 7), "three words in nothing"
    assert more["what is heard against what is said: WER"].n == 4
    assert {row.better for what, row in by_name.items() if "answer right" in what} == {"higher"}
    assert {row.better for what, row in by_name.items() if what in (NOTHING, DEGENERATE, DELAY, EARLY, WER)} == {
        "lower"
    }
    assert by_name["answer right"].value == 0.5 and by_name["answer right as heard"].value == 0.5
    assert by_name["what is heard against what is said: WER"].value == pytest.approx(2 / 7)
    assert by_name["nothing is said"].value == 0.25
    assert by_name["answered before the question's end"].value == pytest.approx(1 / 3)
    assert by_name["first word after the question's end, median"].value == 80
    for what in ("answer right", "answer right as heard", "b: answer right", "nothing is said", "degenerate speech"):
        added = [value for one in found for value in one.values.get(what, [])]
        assert (float(np.mean(added)), len(added)) == (by_name[what].value, by_name[what].n), (
            "a comparison in pairs needs it"
        )
    assert [one.values.get("first word after the question's end, median") for one in found] == [
        [160],
        [80],
        None,
        [-80],
    ]


def test_two_results_are_compared_question_by_question() -> None:
    def result(*right: bool) -> Result:
        asked = [
            replace(outcome("a", "seven", "seven" if is_right else "no"), seed=i) for i, is_right in enumerate(right)
        ]
        return Result("prompts", {}, rows(asked, {"a": len(asked)}), [one.as_json() for one in asked])

    found = compare(result(*[True] * 8), result(*[False] * 8)).rows[0]
    assert (found.what, found.method) == ("answer right", "8 pairs (McNemar)")


def test_seeds() -> None:
    assert list(seeds_of(QUESTION, 7, 3)) == [7, 8, 9]
    assert list(seeds_of(QUESTION, 7, None)) == [7]
    assert list(seeds_of(replace(QUESTION, seeds=(4, 9)), 0, None)) == [4, 9]
    assert list(seeds_of(replace(QUESTION, seeds=(4, 9)), 2, None)) == [6, 11]
    assert list(seeds_of(replace(QUESTION, seeds=(4, 9)), 1, 1)) == [1]
    last = (1 << 63) - 1
    assert list(seeds_of(replace(QUESTION, seeds=(0, 1)), last, None)) == [last, 0], (
        "every one of them can be asked with"
    )
    assert list(seeds_of(QUESTION, last, 2)) == [last, 0]


def test_a_backend_that_answers_no_frame_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.evaluate.prompts.asking.LOST_SECONDS", 0.01)

    class Dead(Agent):
        def open(self, settings: Settings = Settings()) -> Conversation:  # noqa: B008
            call = super().open(settings)
            call.send = lambda pcm: None  # type: ignore[method-assign]
            return call

    with pytest.raises(ConversationError, match="has not answered a frame"):
        asked(Dead())
