"""The live loop, with files for devices and a script for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from personaplex.audio import read_audio
from personaplex.conversation import Capabilities, Error, Settings
from personaplex.errors import Closed, DeviceError, OutputError, PersonaError, PersonaPlexError
from personaplex.live.device import Captured, FileDevice, Hint, Lost, Put
from personaplex.live.display import Status
from personaplex.live.floor import Floor, Key, Open, Turns
from personaplex.live.playout import FEWEST_FRAMES, Playout
from personaplex.live.session import Roles, Session
from personaplex.persona import read_personas
from personaplex.steps import StepRecord
from personaplex.units import FRAME_SAMPLES
from tests.contract.scripted import Scripted, ScriptedConversation


class Seen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.text, self.notes, self.statuses = "", list[str](), list[Status]()

    def show(self, status: Status) -> None:
        self.statuses.append(status)

    def say(self, text: str) -> None:
        self.text += text

    def turn(self, *, agent: bool) -> None:
        self.text += "<" if agent else ">"

    def note(self, text: str) -> None:
        self.notes.append(text)


class Typing(FileDevice):
    """At certain frames, lines are typed or worse happens."""

    script: dict[int, str | Hint | Lost]

    def start(self, playout: Playout, put: Put) -> None:
        n_frames = 0

        def and_type(item: Captured | Lost | Hint) -> None:
            nonlocal n_frames
            if n_frames in self.script:
                put(self.script[n_frames])  # type: ignore[arg-type]
            n_frames += 1
            put(item)

        super().start(playout, and_type)


def talk(
    pcm: np.ndarray,
    out: Path | None,
    *,
    floor: Floor | None = None,
    script: dict[int, str | Hint | Lost] | None = None,
    record: Path | None = None,
    backend: Scripted | None = None,
    tail_seconds: float = 2.0,
) -> tuple[Session, Seen]:
    display = Seen()
    device = Typing(pcm, out, realtime=False)
    device.script = script or {}
    session = Session(
        (backend or Scripted(1)).open,
        Settings(seed=5),
        device,
        floor or Open(),
        display,
        Roles(read_personas(), ["NATF2"]),
        record=record,
        tail_seconds=tail_seconds,
    )
    session.run()
    return session, display


@pytest.fixture
def speech_frames() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 20 * FRAME_SAMPLES).astype(np.float32)


def test_duplex_sound_comes_back_three_frames_later_without_a_gap(speech_frames: np.ndarray, tmp_path: Path) -> None:
    session, display = talk(speech_frames, tmp_path / "out.wav", record=tmp_path / "call.wav")
    heard = read_audio(tmp_path / "out.wav")
    late = FEWEST_FRAMES * FRAME_SAMPLES
    assert not heard[:late].any()
    assert np.allclose(heard[late:][: len(speech_frames)], speech_frames, atol=1e-4)
    assert session.playout.gaps == 0 and display.text == "<hello there >"
    assert display.statuses[-1].depth == FEWEST_FRAMES and display.statuses[10].agent_level > 0.05
    report = json.loads((tmp_path / "call.json").read_text())
    at = {event["text"]: event["at"] for event in report["events"] if event["event"] == "agent text"}
    # Frame 5 says "there"; it is audible three frames and one later than the user's frame 5 began.
    assert at["there "] == pytest.approx((5 + FEWEST_FRAMES + 1) * 0.08) and report["seed"] == 5
    steps = StepRecord.from_json(report["steps"])
    n = len(speech_frames) // FRAME_SAMPLES
    assert np.array(steps.at[:n]) == pytest.approx(0.08 * (FEWEST_FRAMES + np.arange(n)), abs=1e-3), "when it is heard"
    assert [measure.ms for measure in steps.measures[:n]] == [1.0 + i for i in range(n)]


def test_one_after_the_other_with_enter(speech_frames: np.ndarray, tmp_path: Path) -> None:
    session, display = talk(
        speech_frames,
        tmp_path / "out.wav",
        floor=Turns(Key()),
        script={3: "", 8: ""},
        record=tmp_path / "call.wav",
        backend=Scripted(1, ["one", "two"]),
        tail_seconds=60,
    )
    report = json.loads((tmp_path / "call.json").read_text())
    told = [(event["event"], event["at"]) for event in report["events"] if event["event"].startswith("user")]
    assert [what for what, _ in told] == ["user started", "user stopped"]
    assert 0.2 < told[0][1] < 0.4 and 0.6 < told[1][1] < 0.8
    assert display.text == "<one two >", "a turn begun while the user spoke is shown once the user has finished"
    assert session.playout.gaps == 0


def test_turns_follow_one_another_in_one_conversation(speech_frames: np.ndarray, tmp_path: Path) -> None:
    """The agent's time stands still between them, and nothing is forgotten."""
    opened = []

    class Backend(Scripted):
        def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
            opened.append(super().open(settings))
            return opened[-1]

    script: dict[int, str | Hint | Lost] = {1: "", 5: "", 60: "", 64: ""}
    _, display = talk(
        np.tile(speech_frames, 4),
        None,
        floor=Turns(Key()),
        script=script,
        record=tmp_path / "call.wav",
        backend=Backend(1, ["one", "two", "three", "four", "five", "six"]),
        tail_seconds=30,
    )
    events = [event["event"] for event in json.loads((tmp_path / "call.json").read_text())["events"]]
    assert len(opened) == 1 and display.text == "<one two three four five six >"
    assert [e for e in events if e.startswith("user")] == ["user started", "user stopped"] * 2
    heard, passed = opened[0]._n_frames, 80 + 50
    assert 30 < heard < passed, "of the time that passed the agent has lived its own turns only"


def test_commands_while_talking(speech_frames: np.ndarray, tmp_path: Path) -> None:
    updates = []

    class Changing(ScriptedConversation):
        def update(self, **changes: object) -> None:
            updates.append(changes)

    class Backend(Scripted):
        def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
            made = Changing(self.words, settings)
            self._open.add(made)
            return made

    script: dict[int, str | Hint | Lost] = {
        1: "!persona claudia",
        2: "!voice VOICE9 keep",
        3: "!persona nobody",
        4: "!dance",
        5: "hello",
        6: "!save",
        7: "!reset",
        12: "!quit",
    }
    _, display = talk(speech_frames, tmp_path / "out.wav", script=script, backend=Backend(1))
    claudia = read_personas()["claudia"]
    assert updates == [
        {"voice": "NATF2", "prompt": claudia.prompt, "keep_history": False},
        {"voice": "VOICE9", "keep_history": True},
    ]
    told = "\n".join(display.notes)
    for expected in (
        "unknown persona 'nobody'; there are aria",
        "unknown command !dance",
        "typed text is not heard",
        "cannot be saved",
    ):
        assert expected in told
    assert told.count("ready (seed 5)") == 2, "after !reset it is another conversation"
    assert len(read_audio(tmp_path / "out.wav")) < 15 * FRAME_SAMPLES


def test_after_a_voice_that_cannot_be_used_a_reset_is_as_before(speech_frames: np.ndarray) -> None:
    opened = []

    class Refusing(ScriptedConversation):
        def update(self, **changes: object) -> None:
            self._mailbox.put(Error(self._n_frames, PersonaError("unknown voice")))

    class Backend(Scripted):
        def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
            opened.append(settings)
            return Refusing(self.words, settings)

    script: dict[int, str | Hint | Lost] = {2: "!voice nobody", 6: "!reset"}
    _, display = talk(speech_frames, None, script=script, backend=Backend(1))
    assert "unknown voice" in display.notes and opened == [Settings(seed=5)] * 2


def test_typed_text_is_said_and_a_turn_cut_short(speech_frames: np.ndarray, tmp_path: Path) -> None:
    able = Capabilities(full_duplex=True, text_input=True, cancel=True, update=True, keep_history=True)
    script: dict[int, str | Hint | Lost] = {3: "!say well now", 12: "!stop", 14: "!voice NATF2 keep", 16: "!say"}
    record = tmp_path / "call.wav"
    session, display = talk(speech_frames, None, script=script, record=record, backend=Scripted(1, ["yes"], able))
    # The agent's words come later than they are typed, and what waited in the buffer when it was stopped is gone.
    assert display.text.startswith("<yes ") and "well" in display.text and "now" not in display.text
    assert "another role or voice, and all remembered" in display.notes and "!say needs a text" in display.notes
    events = json.loads((tmp_path / "call.json").read_text())["events"]
    assert {"say", "stop", "voice"} <= {event["event"] for event in events}
    assert session.settings.voice == "NATF2"


def test_a_device_that_goes_away_ends_it_and_keeps_the_recording(speech_frames: np.ndarray, tmp_path: Path) -> None:
    gone = Lost(DeviceError("the sound device has stopped; was it unplugged?"))
    with pytest.raises(DeviceError, match="unplugged"):
        talk(speech_frames, tmp_path / "out.wav", script={10: gone}, record=tmp_path / "call.wav")
    assert json.loads((tmp_path / "call.json").read_text())["seconds"] == pytest.approx(0.8)


def test_a_full_disk_ends_the_recording_and_not_the_talk(
    speech_frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("personaplex.audio._write", refuse)
    monkeypatch.setattr("personaplex.live.device.audio_file", _nowhere)
    with pytest.raises(OutputError, match="No space left on device; the conversation is not recorded any more"):
        talk(speech_frames, None, record=tmp_path / "call.wav")
    assert list(tmp_path.iterdir()) == []


def _nowhere(*_: object) -> Callable[..., None]:
    raise AssertionError("no output was asked for")


def test_samples_that_are_no_numbers_are_silence_and_said_once(speech_frames: np.ndarray, tmp_path: Path) -> None:
    speech_frames[FRAME_SAMPLES : 3 * FRAME_SAMPLES] = np.nan
    _, display = talk(speech_frames, tmp_path / "out.wav")
    assert sum("no numbers" in note for note in display.notes) == 1
    heard = read_audio(tmp_path / "out.wav")
    assert not heard[4 * FRAME_SAMPLES : 6 * FRAME_SAMPLES].any() and heard[6 * FRAME_SAMPLES :].any()


def test_a_hint_of_the_device_is_shown(speech_frames: np.ndarray) -> None:
    _, display = talk(speech_frames, None, script={2: Hint("the microphone gives nothing but zeros")})
    assert "the microphone gives nothing but zeros" in display.notes


def test_a_conversation_that_ends_by_itself_is_an_error(speech_frames: np.ndarray) -> None:
    class Short(ScriptedConversation):
        def _hear(self, frame: np.ndarray) -> None:
            super()._hear(frame)
            if self._n_frames == 4:
                self.end("shutdown")

    class Backend(Scripted):
        def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
            return Short(self.words, settings)

    with pytest.raises(PersonaPlexError, match=r"has ended \(shutdown\)"):
        talk(speech_frames, None, backend=Backend(1))


def test_a_conversation_is_saved_at_home(speech_frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []
    monkeypatch.setattr(ScriptedConversation, "save", lambda _, path: saved.append(path), raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    _, display = talk(speech_frames, None, script={2: "!save ~/a.safetensors"})
    assert saved == [Path("/home/ann/a.safetensors")]
    assert "saved /home/ann/a.safetensors; --resume goes on from there" in display.notes


def test_what_ended_a_conversation_is_told_and_no_earlier_mistake(
    speech_frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(call: ScriptedConversation, **_: object) -> None:
        call._mailbox.put(Error(0, PersonaError("no such voice")))
        call.end("unread")

    monkeypatch.setattr(ScriptedConversation, "update", update)
    with pytest.raises(Closed, match="unread"):
        talk(speech_frames, None, script={2: "!voice NATF2"})
