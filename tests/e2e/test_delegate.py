"""A function that answers for the tiny duplex model: flite's voice asks, PocketSphinx hears, flite answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from personaplex.cascade.delegated import Delegated
from personaplex.cascade.deputy import Deputy
from personaplex.cascade.engine import Message
from personaplex.conversation import AgentText, Audio, Event, Interrupted, Settings, UserText
from personaplex.persona import Parts
from tests.e2e.test_cascade import say, words_in
from tests.small import tiny_engine
from tests.unit.test_cascade_conversation import of
from tests.unit.test_cascade_delegated import listen

LONG = "The replacement part ships in three days, and the invoice comes by mail on Monday, or on Tuesday at the latest."


def test_a_function_is_asked_is_interrupted_and_is_asked_again() -> None:
    before = set(threading.enumerate())
    asked: list[tuple[str, list[Message]]] = []

    def answer(said: str, history: Sequence[Message]) -> str | None:
        asked.append((said, list(history)))
        return LONG if "replacement" in said else "We are open from nine to five." if "opening" in said else None

    questions = [say("awb", "Will you ship the replacement part tomorrow?"), say("rms", "What are your opening hours?")]
    backend = Delegated(tiny_engine(1), Deputy(answer, Parts(synthesiser="flite", voice="slt")), patient=True)
    found: list[Event] = []
    with backend.open(Settings(seed=3, prompt="teacher")) as call:
        events = call.events()
        for question in questions:
            found += listen(call, events, np.pad(question, (12_000, 24_000 * 2)))
        found += listen(call, events, np.zeros(24_000 * 3, np.float32))
    backend.close()
    (interrupted,) = of(Interrupted, found)
    heard = [event for event in found if event.frame < interrupted.frame]
    assert "replacement" in of(UserText, heard)[-1].text
    told = "".join(event.text for event in of(AgentText, heard)).strip()
    assert "The replacement part" in told and "latest" not in told
    first, second = asked
    assert "opening hours" in second[0] and "wise and friendly teacher" in first[1][0].content
    assert told[-24:] in second[1][-1].content and "latest" not in second[1][-1].content, "it knows what was heard"
    after = [event.pcm for event in of(Audio, found) if event.frame > interrupted.frame + 13]
    assert {"nine", "five"} & set(words_in(np.concatenate(after)))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread.name
