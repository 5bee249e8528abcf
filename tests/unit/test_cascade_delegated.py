"""A deputy beside a backend that says what it is given: whose sound is heard, and what is told of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from personaplex.cascade.delegated import Delegated
from personaplex.cascade.deputy import Delegate, Deputy
from personaplex.cascade.engine import Message
from personaplex.cascade.relay import CATCH_UP_FRAMES, FADE_FRAMES, MOST_CHARACTERS
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Capabilities,
    Conversation,
    Ended,
    Error,
    Event,
    EventStream,
    Interrupted,
    Settings,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import EngineError, PersonaError, UsageError
from personaplex.persona import Parts
from personaplex.units import FRAME_SAMPLES
from tests.cascade_engines import DOWN, Engines, silence, speech
from tests.contract.scripted import Scripted, ScriptedConversation
from tests.unit.test_cascade_transcribed import Listener

PARTS = Parts(synthesiser="script-voice", voice="two", temperature=0.4, max_tokens=33)
ABLE = Capabilities(full_duplex=True, text_input=True, cancel=True, update=True, keep_history=True)
E = TypeVar("E", bound=Event)


class Model(Listener):
    """A script that says what it is given, and remembers what that was; its sound is its user's."""

    def __init__(self, words: Sequence[str] = (), *, repeats: bool = True) -> None:
        super().__init__(2, words, ABLE)
        self.repeats = repeats
        self.acts: list[str] = []

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
        call = super().open(settings)
        say, cancel = call.send_text, call.cancel

        def send_text(text: str) -> None:
            self.acts.append(text)
            if self.repeats:
                say(text)

        def note_cancel() -> None:
            self.acts.append("<cancel>")
            cancel()

        call.send_text, call.cancel = send_text, note_cancel  # type: ignore[method-assign]
        return call


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def hold(delegate: Delegate | str, *sounds: np.ndarray, model: Model | None = None, **options: Any) -> list[Event]:
    """The events of a conversation in which a recording is heard as fast as it is answered."""
    deputy = Deputy(delegate, PARTS, aloud=options.pop("aloud", True))
    backend = Delegated(model or Model(), deputy, "script-ears", patient=True)
    found: list[Event] = []
    with backend.open(Settings(**{"seed": 3} | options)) as call:
        events = call.events()
        found += listen(call, events, *sounds)
        call.finish()
        found += list(events)
    backend.close()
    assert isinstance(found[-1], Ended) and found[-1].reason == "finished"
    n_frames = [event.frame for event in of(Audio, found)]
    assert all(event.measure is not None and event.measure.ms == 1 + event.frame for event in of(Audio, found))
    assert n_frames == list(range(len(n_frames)))
    return found


def listen(call: Conversation, events: EventStream, *sounds: np.ndarray) -> list[Event]:
    """What is told while it hears `sounds`, frame by frame."""
    found: list[Event] = []
    for frame in frames(*sounds):
        call.send(frame)
        event = None
        while not isinstance(event, Audio):
            event = events.get(30)
            assert event is not None
            found.append(event)
    return found


def frames(*sounds: np.ndarray) -> Iterator[np.ndarray]:
    pcm = np.concatenate(sounds)
    for start in range(0, len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES, FRAME_SAMPLES):
        yield pcm[start : start + FRAME_SAMPLES]


def of(kind: type[E], events: list[Event]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in of(AgentText, events)).strip()


def tone(events: list[Event]) -> list[int]:
    """Frames in which the deputy's voice, a tone of 0.1, is heard; the user's is twice as loud."""
    return [event.frame for event in of(Audio, events) if 0.05 < np.abs(event.pcm).max() < 0.15]


def at_noon(said: str, history: Sequence[Message]) -> str | None:
    return "It is noon. Good day." if "time" in said else None


def test_the_answer_is_heard_in_the_deputys_voice_and_the_model_says_it_unheard(engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    model = Model()
    events = hold(at_noon, silence(1), speech(1), silence(4), model=model)
    assert text(events) == "It is noon. Good day." and {voice for _, voice in engines.synthesiser.said} == {"two"}
    assert model.acts[0] == "<cancel>" and "".join(model.acts[1:]).strip() == "It is noon. Good day."
    (started,), (ended,) = of(AgentStarted, events), of(AgentEnded, events)
    assert (
        tone(events) == list(range(started.frame, ended.frame)) and ended.frame - started.frame == 5 * 4800 // 1920 + 1
    )
    assert of(UserText, events)[-1].text == "what time is it" and not of(Interrupted, events)


def test_none_lets_the_model_answer_and_it_is_not_touched(engines: Engines) -> None:
    engines.recogniser.said = ["how are you"]
    model = Model(["fine", "thanks"])
    events = hold(at_noon, silence(1), speech(1), silence(2), model=model)
    assert text(events) == "fine thanks" and not model.acts and not tone(events)


def test_the_model_is_not_heard_from_the_deputys_first_sound_until_it_has_said_the_same(engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    events = hold(at_noon, silence(1), speech(1), speech(0.4), silence(4), model=Model(["well"] * 9))
    assert text(events).startswith("well") and text(events).endswith("It is noon. Good day.")
    assert text(events).count("noon") == 1, "what the model repeats is not told"
    turns = [type(event) for event in events if isinstance(event, AgentStarted | AgentEnded)]
    assert turns == [AgentStarted, AgentEnded], "the model was speaking, and the deputy goes on"


def hiss(seconds: float) -> np.ndarray:
    """What the model sounds like where it repeats its user, who is quiet."""
    return np.full(round(seconds * 24_000), 0.02, np.float32)


@pytest.mark.parametrize("repeats", [True, False])
def test_the_model_is_silent_until_it_has_caught_up_or_never_will(repeats: bool, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    model = Model(repeats=repeats)
    events = hold(at_noon, silence(1), speech(1), hiss(6), model=model)
    (ended,) = of(AgentEnded, events)
    silent = [event.frame for event in of(Audio, events) if not event.pcm.any() and event.frame >= ended.frame]
    most = CATCH_UP_FRAMES + FADE_FRAMES
    assert silent == list(range(ended.frame, ended.frame + len(silent))) and silent[-1] + 1 < events[-1].frame
    if repeats:
        assert FADE_FRAMES < len(silent) < CATCH_UP_FRAMES, "it was given five words, and says one in five frames"
    else:
        assert len(silent) == most
    assert model.acts.count("<cancel>") == (1 if repeats else 2) and text(events) == "It is noon. Good day."


def test_who_speaks_interrupts_the_deputy(engines: Engines) -> None:
    engines.recogniser.said = ["what time is it", "no wait", "what time was it"]
    engines.synthesiser.seconds_per_word = 0.001
    asked: list[list[str]] = []

    def long(said: str, history: Sequence[Message]) -> str:
        asked.append([message.content for message in history[1:]] + [said])
        return "one two three four five six seven eight nine ten " * 3

    model = Model()
    events = hold(long, silence(1), speech(1), silence(1.3), speech(0.5), silence(0.5), model=model)
    (interrupted,) = of(Interrupted, events)
    assert isinstance(events[events.index(interrupted) + 1], AgentEnded)
    again = of(AgentStarted, events)[1].frame
    assert not [frame for frame in tone(events) if interrupted.frame < frame < again]
    heard = text([event for event in events if event.frame <= interrupted.frame])
    assert 2 <= len(heard.split()) < 20
    given = model.acts[1 : model.acts.index("<cancel>", 1)]
    assert "".join(given).strip() == heard, "the model was given what was heard, and then cancelled"
    assert model.acts.count("<cancel>") == 3, "for the answer, for the user, and for the next answer"
    assert asked[1] == ["what time is it", heard, "no wait"]
    assert text([event for event in events if event.frame >= again]).startswith("one")


def test_the_owner_can_cancel_and_type(engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    backend = Delegated(Model(), Deputy(lambda *_: "one two three four five six seven " * 9, PARTS), "script-ears")
    with backend.open(Settings(seed=3)) as call:
        events = call.events()
        found = listen(call, events, silence(1), speech(1), silence(0.2))
        while not tone(found):
            found += listen(call, events, silence(0.08))
        call.send_text("never mind")
        found += listen(call, events, silence(3))
        call.finish()
        found += list(events)
    backend.close()
    (interrupted,) = of(Interrupted, found)
    assert max(tone(found)) <= interrupted.frame and isinstance(found[found.index(interrupted) + 1], AgentEnded)
    assert "mind" in text(found[found.index(interrupted) :]), "the model says what was typed"


def test_what_is_typed_while_the_model_still_repeats_is_not_cancelled_with_it(engines: Engines) -> None:
    engines.recogniser.said, model = ["what time is it"], Model(repeats=False)
    backend = Delegated(model, Deputy(at_noon, PARTS), "script-ears", patient=True)
    with backend.open() as call:
        events = call.events()
        found = listen(call, events, silence(1), speech(1))
        while not of(AgentEnded, found):
            found += listen(call, events, silence(0.08))
        call.send_text("never mind")
        listen(call, events, silence(5))
    backend.close()
    assert model.acts[-2:] == ["<cancel>", "never mind"]


def test_who_goes_on_before_the_first_half_is_understood_is_not_spoken_into(engines: Engines) -> None:
    """A recogniser that is slow brings an utterance while the next is spoken."""
    asked: list[str] = []

    def answer(said: str, history: Sequence[Message]) -> str:
        asked.append(said)
        return "It is noon."

    class Slow(Model):
        def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
            call = Scripted(1, ["well"] * 9, ABLE).open(settings)
            for event in (UserStarted(0), UserStopped(1), UserStarted(2), UserText(2, "what time", True)):
                call._mailbox.put(event)
            hear = call._hear

            def hear_and_tell(frame: np.ndarray) -> None:
                hear(frame)
                if call._n_frames == 20:
                    call._mailbox.put(UserStopped(20))
                if call._n_frames == 22:
                    call._mailbox.put(UserText(22, "is it", True))

            call._hear = hear_and_tell  # type: ignore[method-assign]
            return call

    events = hold(answer, silence(5), model=Slow())
    assert min(tone(events)) >= 19 and asked[0] == "what time" and asked[-1].endswith("is it")
    assert text(events).endswith("It is noon."), "what was begun of an answer to the half is not gone on with"


@pytest.mark.parametrize("act", ["type", "forget"])
def test_a_deputy_who_still_thinks_is_stopped_too(act: str, engines: Engines) -> None:
    engines.recogniser.said, asked, go_on = ["what time is it"], threading.Event(), threading.Event()

    def think(said: str, history: Sequence[Message]) -> str:
        asked.set()
        go_on.wait(30)
        return "It is noon."

    backend = Delegated(Model(), Deputy(think, PARTS), "script-ears")
    with backend.open() as call:
        events = call.events()
        found = listen(call, events, silence(1), speech(1), silence(0.2))
        assert asked.wait(30)
        if act == "type":
            call.send_text("never mind")
        else:
            call.update(prompt="Your name is Eve.")
        found += listen(call, events, silence(0.4))
        go_on.set()
        found += listen(call, events, silence(3))
        call.finish()
        found += list(events)
    backend.close()
    assert text(found) == ("never mind" if act == "type" else "") and not tone(found)


def test_without_a_voice_the_model_says_it(engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    model = Model()
    events = hold(at_noon, silence(1), speech(1), silence(4), model=model, aloud=False)
    assert model.acts == ["<cancel>", "It is noon. ", "Good day. "] and not engines.synthesiser.said
    assert text(events) == "It is noon. Good day." and not tone(events)


async def later(said: str, history: Sequence[Message]) -> str:
    await asyncio.sleep(0.01)
    return "It is noon."


async def piecewise(said: str, history: Sequence[Message]) -> AsyncIterator[str]:
    for piece in ("It is ", "no", "on. Good ", "day."):
        yield piece


@pytest.mark.parametrize(("delegate", "said"), [(later, "It is noon."), (piecewise, "It is noon. Good day.")])
def test_a_function_may_be_asynchronous_or_give_pieces(delegate: Delegate, said: str, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    assert text(hold(delegate, silence(1), speech(1), silence(4))) == said


def test_a_language_model_has_the_role_the_numbers_and_what_was_said(engines: Engines) -> None:
    engines.recogniser.said = ["what time is it", "thank you"]
    events = hold("script-mind", silence(1), speech(1), silence(3), speech(1), silence(3), prompt="teacher")
    assert text(events) == "Good day. It is noon. Good day. It is noon."
    first, second = engines.thinker.asked
    assert first[0].role == "system" and "wise and friendly teacher" in first[0].content
    assert second[1:] == [
        Message("user", "what time is it"),
        Message("assistant", "Good day. It is noon."),
        Message("user", "thank you"),
    ]
    assert engines.thinker.options[0] == {"temperature": 0.4, "max_tokens": 33, "seed": 3}


@pytest.mark.parametrize("keep", [True, False])
def test_another_role_is_the_deputys_too(keep: bool, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it", "thank you"]
    backend = Delegated(Model(), Deputy("script-mind", PARTS), "script-ears", patient=True)
    with backend.open(Settings(prompt="Your name is Adam.")) as call:
        events = call.events()
        listen(call, events, silence(1), speech(1), silence(3))
        call.update(prompt="Your name is Eve.", keep_history=keep)
        listen(call, events, speech(1), silence(1))
    backend.close()
    first, second = engines.thinker.asked
    assert "Adam" in first[0].content and "Eve" in second[0].content and len(second) == (4 if keep else 2)


def test_what_a_model_says_for_hours_is_remembered_in_bounded_memory(engines: Engines) -> None:
    engines.recogniser.said, words = ["what time is it"], ["something"] * 1000
    backend = Delegated(Model(words), Deputy("script-mind", PARTS), "script-ears", patient=True)
    with backend.open() as call:
        listen(call, call.events(), silence(300), speech(1), silence(1))
    backend.close()
    (asked,) = engines.thinker.asked
    (said,) = (message for message in asked if message.role == "assistant")
    assert 3000 < len(said.content) <= MOST_CHARACTERS < 600 * len("something ")


def broken(said: str, history: Sequence[Message]) -> str:
    raise RuntimeError("no such table")


@pytest.mark.parametrize(
    ("delegate", "tokens", "told", "said"),
    [
        (broken, [], "the delegate failed: RuntimeError: no such table", ""),
        (lambda *_: 7, [], "answered with int; expected text", ""),
        ("script-mind", [DOWN], "no chat server answers", ""),
        ("script-mind", ["It is noon. ", DOWN], "no chat server answers", "It is noon."),
        (lambda *_: "One. This is unsayable. Three.", [], "unsayable", "One. This is"),
    ],
)
def test_what_goes_wrong_is_told_and_the_call_goes_on(
    delegate: Any, tokens: list[Any], told: str, said: str, engines: Engines
) -> None:
    engines.recogniser.said, engines.thinker.tokens = ["what time is it", "and now"], tokens
    events = hold(delegate, silence(1), speech(1), silence(3), speech(1), silence(3))
    assert [told in str(event.error) for event in of(Error, events)] == [True, True]
    assert text(events) == " ".join([said, said]).strip()


def test_a_function_that_hangs_is_told(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cascade.deputy.PATIENCE_SECONDS", 0.05)
    engines.recogniser.said, go_on = ["what time is it"], threading.Event()
    events = hold(lambda *_: str(go_on.wait(30)), silence(1), speech(1), silence(1))
    go_on.set()
    assert "gave nothing for 0.05 s" in str(of(Error, events)[0].error) and not text(events)


def test_a_function_that_hangs_between_pieces_is_told(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cascade.deputy.PATIENCE_SECONDS", 0.05)
    engines.recogniser.said, closed = ["what time is it"], []

    async def hang(said: str, history: Sequence[Message]) -> AsyncIterator[str]:
        try:
            yield "It is "
            await asyncio.sleep(60)
        finally:
            closed.append(said)

    events = hold(hang, silence(1), speech(1), silence(2))
    assert "gave nothing for 0.05 s" in str(of(Error, events)[0].error) and text(events) == "It is" and closed


def test_what_cannot_be_used_is_told_before_anything_is_opened(engines: Engines) -> None:
    engines.thinker.absent = EngineError("the model is not pulled")
    mistakes: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (EngineError, "not pulled", lambda: Deputy("script-mind", PARTS)),
        (UsageError, "unknown language model", lambda: Deputy("nobody", PARTS)),
        (PersonaError, "no voice 'three'", lambda: Deputy(at_noon, Parts(synthesiser="script-voice", voice="three"))),
        (PersonaError, "no language 'xx'", lambda: Deputy(at_noon, Parts(synthesiser="script-voice", language="xx"))),
    ]
    for kind, told, make in mistakes:
        with pytest.raises(kind, match=told):
            make()
    deputy = Deputy(at_noon, PARTS)
    with pytest.raises(UsageError, match="takes texts to say"):
        Delegated(Listener(1), deputy, "script-ears")
    deputy.close()
    deputy.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "personaplex-deputy"]


def test_conversations_that_end_at_any_moment_leave_nothing_behind(engines: Engines) -> None:
    before = {thread.name for thread in threading.enumerate()}
    engines.thinker.tokens = ["One two three. ", 0.01, "Four five. ", "unsayable. ", 0.02, "Six seven."]
    rng = np.random.default_rng(4)
    for patient in (False, True):
        backend = Delegated(Model(["well"] * 9), Deputy("script-mind", PARTS), "script-ears", patient=patient)
        for i in range(20):
            engines.recogniser.said = ["what time is it", "no wait", "hello"]
            call = backend.open(Settings(seed=i))
            for _ in range(int(rng.integers(1, 5))):
                for frame in frames((speech if rng.random() < 0.5 else silence)(float(rng.uniform(0.2, 1.5)))):
                    call.send(frame)
                if rng.random() < 0.3:
                    call.cancel()
                if rng.random() < 0.3:
                    call.update(prompt="sage")
            (call.close if rng.random() < 0.5 else call.finish)()
            if rng.random() < 0.7:
                events = list(call.events())
                assert isinstance(events[-1], Ended)
                turns = [type(event) for event in events if isinstance(event, AgentStarted | AgentEnded)]
                assert turns == ([AgentStarted, AgentEnded] * 99)[: len(turns)]
        loop = backend._deputy.loop
        backend.close()
        assert not asyncio.all_tasks(loop) and loop.is_closed() and not backend._relays
    for thread in threading.enumerate():
        if thread.name.startswith("personaplex-") and thread.name not in before:
            thread.join(10)
            assert not thread.is_alive(), thread.name
    assert engines.thinker.n_open == engines.synthesiser.n_open == engines.recogniser.n_open == 0
