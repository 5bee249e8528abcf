"""A recogniser that listens in: the user's text beside a backend that does not know it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from personaplex.cascade.engine import Transcript
from personaplex.cascade.transcribed import Transcribed
from personaplex.conversation import Ended, Error, Settings, UserStarted, UserStopped, UserText
from personaplex.errors import UsageError
from personaplex.units import FRAME_SAMPLES
from tests.cascade_engines import Engines, Listening, silence, speech
from tests.contract.scripted import Scripted, ScriptedConversation


class Listener(Scripted):
    """A script that tells when its user speaks, by level."""

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
        call = super().open(settings)
        hear, speaking = call._hear, [False]

        def hear_and_tell(frame: np.ndarray) -> None:
            hear(frame)
            if (np.abs(frame).max() > 0.05) != speaking[0]:
                speaking[0] = not speaking[0]
                call._mailbox.put((UserStarted if speaking[0] else UserStopped)(call._n_frames - 1))

        call._hear = hear_and_tell  # type: ignore[method-assign]
        return call


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def test_what_the_user_said_is_told_before_the_end(engines: Engines) -> None:
    engines.recogniser.said = ["what time is it", RuntimeError("broken"), "thank you", "not to the end"]
    backend = Transcribed(Listener(1), "script-ears")
    with backend.open() as call:
        assert call.capabilities.user_text and backend.capabilities.user_text
        for _ in range(3):
            for piece in np.array_split(np.concatenate([silence(1.2), speech(1.0)]), 9):
                call.send(piece)
        call.send(silence(0.8))
        call.feed(speech(0.5))
        call.finish()
        events = list(call.events())
    texts = [event for event in events if isinstance(event, UserText)]
    assert [event.text for event in texts if event.final] == ["what time is it", "thank you"]
    assert sum(isinstance(event, Error) for event in events) == 1 and isinstance(events[-1], Ended)
    assert engines.recogniser.n_open == 0
    backend.close()
    heard = np.array(engines.recogniser.n_samples) / 16_000
    assert len(heard) == 2 and heard == pytest.approx([2.0, 2.0], abs=0.17), "the speech, and a second before"
    assert not [thread for thread in threading.enumerate() if thread.name == "personaplex-scribe"]


def test_the_backend_hears_the_same(engines: Engines) -> None:
    pcm = np.random.default_rng(0).normal(0, 0.1, 9 * FRAME_SAMPLES + 5).astype(np.float32)
    said = []
    for backend in (Listener(1), Transcribed(Listener(1), "script-ears")):
        with backend.open(Settings(seed=1)) as call:
            call.send(pcm)
            call.finish()
            said.append([event for event in call.events() if not isinstance(event, UserText)])
    assert said[0] == said[1]


def test_what_cannot_listen_in_is_told_at_once(engines: Engines) -> None:
    with pytest.raises(UsageError, match="unknown recogniser"):
        Transcribed(Listener(1), "nobody")
    with pytest.raises(UsageError, match="English"):
        Transcribed(Listener(1), "pocketsphinx", "de")


def test_the_recogniser_is_closed_when_nobody_uses_it_any_more(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears, go_on, did = threading.Event(), threading.Event(), list[str]()
    monkeypatch.setattr(engines.recogniser, "close", lambda: did.append("closed"))

    def finish(listening: Listening) -> Transcript:
        hears.set()
        go_on.wait(0.3)
        did.append("heard")
        return Transcript("")

    monkeypatch.setattr(Listening, "finish", finish)
    backend = Transcribed(Listener(1), "script-ears")
    call = backend.open()
    call.send(np.concatenate([speech(1), silence(0.5)]))
    assert hears.wait(30)
    backend.close()
    assert did == ["heard", "closed"]
