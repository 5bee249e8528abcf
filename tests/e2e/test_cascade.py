"""The cascade with real engines, offline: questions are heard, answered, spoken, and the answers understood."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import soxr

from personaplex.audio import read_audio, write_audio
from personaplex.cascade.backend import Cascade
from personaplex.cascade.conversation import Manner
from personaplex.cascade.registry import open_recogniser, open_synthesiser
from personaplex.cascade.session import ChatSession
from personaplex.cli.main import main
from personaplex.conversation import AgentText, Audio, Event, Settings, UserText
from personaplex.live.floor import Holder, Key, Turns, Voice
from personaplex.live.session import Roles, Session
from personaplex.persona import Parts, read_personas
from personaplex.turns import VoiceActivity
from personaplex.units import SAMPLE_RATE
from tests.conftest import AUDIO, PARITY
from tests.unit.test_cascade_conversation import converse, eventually, left_behind
from tests.unit.test_session import Seen, Typing

TALK = ["talk", "--backend", "cascade", "--plain", "--seed", "3"]
ENGINE, USAGE, PERSONA = 12, 2, 5


@pytest.fixture(scope="module")
def cascade() -> Iterator[Cascade]:
    with Cascade(1, manner=Manner(patient=True)) as made:
        yield made


def say(voice: str, text: str) -> np.ndarray:
    """float32 [S] at 24 kHz."""
    (piece,) = open_synthesiser("flite").say(text, voice)
    return np.asarray(soxr.resample(piece.pcm, piece.rate, SAMPLE_RATE), np.float32)


def hold(cascade: Cascade, pcm: np.ndarray, persona: str) -> list[Event]:
    with cascade.open(Settings(prompt=persona, seed=3)) as call:

        def feed() -> None:
            call.feed(np.pad(pcm, (6_000, 9 * SAMPLE_RATE)))
            call.finish()

        feeder = threading.Thread(target=feed)
        feeder.start()
        events = list(call.events())
        feeder.join()
    return events


def understood(events: list[Event]) -> tuple[str, str, list[str]]:
    """What the user said, what the agent said, and the words that PocketSphinx hears in the agent's sound."""
    user = " ".join(event.text for event in events if isinstance(event, UserText) and event.final)
    agent = "".join(event.text for event in events if isinstance(event, AgentText))
    audible = [event.pcm for event in events if isinstance(event, Audio) and event.pcm.any()]
    return user, agent, words_in(np.concatenate(audible))


def words_in(pcm: np.ndarray) -> list[str]:
    listening = open_recogniser("pocketsphinx").listen("en")
    listening.push(soxr.resample(np.pad(pcm, 6_000), SAMPLE_RATE, 16_000))
    return listening.finish().text.split()


@pytest.mark.parametrize(
    ("voice", "persona", "question", "heard", "keyword"),
    [
        ("rms", "aria", "What are your opening hours on Sunday please?", "opening", "nine"),
        ("awb", "claudia", "Will you ship the replacement part tomorrow?", "replacement", "replacement"),
    ],
)
def test_flites_voices_are_heard_answered_and_understood(
    cascade: Cascade, voice: str, persona: str, question: str, heard: str, keyword: str
) -> None:
    user, agent, words = understood(hold(cascade, say(voice, question), persona))
    assert heard in user.split() and keyword in agent and keyword in words


@pytest.mark.skipif(not AUDIO.is_dir(), reason=f"the recordings are not in {AUDIO}")
def test_a_recorded_question_is_heard_answered_and_understood(cascade: Cascade) -> None:
    question = read_audio(AUDIO / "input_service.wav")[5 * SAMPLE_RATE : 9 * SAMPLE_RATE]
    user, agent, words = understood(hold(cascade, question, "aria"))
    assert {"guarantee", "replacement", "tomorrow"} <= set(user.split())
    assert "three days" in agent and {"replacement", "three"} <= set(words)


@pytest.mark.parametrize(("cue", "when"), [("voice", None), ("key", None), ("key", 6)])
def test_what_is_written_is_answered_at_once_in_turns(cascade: Cascade, cue: str, when: int | None) -> None:
    """Nobody speaks, before the conversation is ready or in it: the agent's time passes all the same."""
    device, display = Typing(np.zeros(2 * SAMPLE_RATE, np.float32), None, realtime=False), Seen()
    device.script = {} if when is None else {when: "!say What are your opening hours?"}
    floor = Turns(Key() if cue == "key" else Voice(VoiceActivity()))
    roles = Roles(read_personas(), by_name=True)
    session = Session(cascade.open, Settings(prompt="aria", seed=3), device, floor, display, roles)
    if when is None:
        session.happenings.put("!say What are your opening hours?")
    session.run()
    assert "nine" in display.text and display.text.startswith("<") and display.text.endswith(">")
    assert floor.holder is Holder.NOBODY


@pytest.mark.parametrize("text", ["😀 `code` https://a.example.com/x?y=1, **well**: 50% & more! ```py\nx\n``` 你好"])
def test_anything_can_be_spoken_and_10_000_words_begin_at_once(text: str) -> None:
    async def speak() -> None:
        async with ChatSession(parts=Parts(synthesiser="flite")) as session:
            said = [word.text for piece in [p async for p in session.speak(text)] for word in piece.words]
            assert "a dot example dot com, well: 50 percent and more!" in " ".join(said) and "screen." in said
            assert [piece async for piece in session.speak("😀 ... 你好")] == []
            async with aclosing(session.speak("One two three four five, six seven. " * 1429)) as pieces:
                first = await anext(pieces)
                assert 1 <= len(first.words) <= 10

    asyncio.run(speak())


def test_conversations_with_real_engines_leave_nothing_behind() -> None:
    """As those with the tests' own engines (tests/unit/test_cascade_conversation.py)."""
    seed = random.getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    voices = [np.pad(say("rms", text), 12_000) for text in ("Hello.", "No, please stop it now.")]
    with Cascade(10) as live:
        with live.open() as call:
            call.send_text("hello")
            call.feed(np.zeros(SAMPLE_RATE, np.float32))
        eventually(lambda: not live._talks)
        left, rng = left_behind(live), random.Random(seed)
        for _ in range(10):
            converse(live, rng, voices)
        eventually(lambda: not left())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a question in it."""
    write_audio(tmp_path / "question.wav", np.pad(say("rms", "What are your opening hours please?"), 6_000))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    return tmp_path


@pytest.mark.parametrize("mode", ["duplex", "turns"])
def test_talking_with_files(desk: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["-i", "question.wav", "-o", "answer.wav", "--record", "both.wav", "--persona", "aria", "--mode", mode]
    assert main([*TALK, *files]) == 0
    shown = capsys.readouterr()
    assert "from nine to five" in shown.out or "are nine to five" in shown.out
    assert "no language model" not in shown.out and "not from a language model" in shown.err
    assert "pocketsphinx hears, responder answers, flite speaks" in shown.err
    assert "you: what are your opening hours please" in shown.err
    about = json.loads((desk / "both.json").read_text())
    assert (about["model"], about["llm"], about["voice"], about["persona"]) == ("cascade", "responder", "awb", "aria")
    told = [event["event"] for event in about["events"]]
    assert "user text" in told and told.index("user text") < told.index("agent started")
    assert np.abs(read_audio(desk / "answer.wav")).max() > 0.1
    shutil.copy("answer.wav", "before.wav")
    assert main([*TALK, *files]) == 0
    assert Path("before.wav").read_bytes() == Path("answer.wav").read_bytes(), "the same again"
    assert json.loads((desk / "both.json").read_text())["events"] == about["events"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--llm", "nothing"], USAGE, "unknown language model 'nothing'; there are"),
        (["--llm", "flite"], USAGE, "unknown language model 'flite'"),
        (["--recogniser", "x"], USAGE, "unknown recogniser 'x'"),
        (["--synthesiser", "x:"], USAGE, "expected NAME or NAME:MODEL"),
        (["--llm", "ollama"], USAGE, "which model"),
        (["--llm", "chat:x"], USAGE, "OPENAI_BASE_URL"),
        (["--llm", "ollama:no-such-model"], ENGINE, "start it: ollama serve"),
        (["--voice", "nobody"], PERSONA, "the synthesiser flite has no voice 'nobody'"),
        (["--language", "xx"], USAGE, "'xx'"),
        (["--persona", "nobody"], PERSONA, "unknown persona 'nobody'"),
        (["--context-seconds", "9"], USAGE, "a cascade does not have it"),
        (["--audio-temp", "1"], USAGE, "a cascade does not have it"),
        (["--resume", "question.wav"], 4, "question.wav"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, told: str, desk: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("personaplex.cascade.chat.OLLAMA_URL", "http://127.0.0.1:9/v1")
    assert main([*TALK, "-q", "-i", "question.wav", "-o", "a.wav", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("personaplex: ")]) == 1 and told in lines[-1], lines
    assert not Path("a.wav").exists()


def test_the_duplex_model_with_a_transcript(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    duplex = ["talk", "--plain", "--seed", "3", "--model", str(PARITY), "-i", "question.wav", "--max-seconds", "3"]
    assert main([*duplex, "-o", "without.wav"]) == 0 and "you: " not in capsys.readouterr().err
    assert main([*duplex, "-o", "with.wav", "--transcribe"]) == 0
    assert "you: what are your opening hours" in capsys.readouterr().err
    assert Path("with.wav").read_bytes() == Path("without.wav").read_bytes()
    for arguments in (
        ["--llm", "responder"],
        ["--recogniser", "pocketsphinx"],
        ["--backend", "cascade", "--transcribe"],
    ):
        assert main([*duplex, *arguments]) == USAGE
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_duplex_model_with_a_delegate(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    duplex = ["talk", "--plain", "--seed", "3", "--model", str(PARITY), "-i", "question.wav", "--max-seconds", "5"]
    assert main([*duplex, "-o", "a.wav", "--delegate", "responder", "--record", "both.wav"]) == 0
    shown = capsys.readouterr()
    assert "you: what are your opening hours" in shown.err and "nine to five." in shown.out
    assert "pocketsphinx hears, responder answers, flite speaks" in shown.err and "a few rules" in shown.err
    assert json.loads((desk / "both.json").read_text())["delegate"] == "responder"
    assert {"opening", "hours"} <= set(words_in(read_audio(desk / "a.wav"))), "flite's voice is heard"
    (desk / "mine.toml").write_text('[me]\nprompt = "You are brief."\ncascade = { delegate = "responder" }\n')
    assert (
        main([*duplex, "-o", "b.wav", "--personas", "mine.toml", "--persona", "me", "--delegate-speech", "model"]) == 0
    )
    shown = capsys.readouterr()
    assert "the model speaks" in shown.err and "nine to f" in shown.out
    for arguments, code, told in (
        (["--delegate", "nobody"], USAGE, "unknown language model 'nobody'"),
        (
            ["--delegate", "responder", "--recogniser", "nobody", "--model", "none"],
            USAGE,
            "unknown recogniser 'nobody'",
        ),
        (["--transcribe", "--recogniser", "nobody", "--model", "none"], USAGE, "unknown recogniser 'nobody'"),
        (["--delegate-speech", "model"], USAGE, "without --delegate"),
        (["--backend", "cascade", "--delegate-speech", "model"], USAGE, "in a cascade --llm answers"),
        (["--delegate", "chat:x", "--llm", "responder"], USAGE, "--llm is a cascade's"),
        (
            ["--delegate", "x", "--delegate-speech", "model", "--synthesiser", "flite"],
            USAGE,
            "--synthesiser says nothing",
        ),
        (["--backend", "cascade", "--delegate", "responder"], USAGE, "in a cascade --llm answers"),
        (["--delegate", "mlx-lm:/no/such/folder"], ENGINE, "/no/such/folder"),
    ):
        assert main([*duplex, "-q", *arguments]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


def test_bench_shows_what_streaming_gains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cascade", "--frames", "1", "--json"]) == 0
    rows = {(row["name"], row["engine"]): row for row in json.loads(capsys.readouterr().out)["rows"]}
    paced = "responder, 40 words/s + flite"
    first = rows["first audio, sentence by sentence", paced]
    assert first["max_ms"] < rows["first and all audio, whole answer at once", paced]["p50_ms"]
    stopped = {f"stopped: {what}" for what in ("hearing", "thinking", "speaking", "the conversation")}
    assert {name for name, _ in rows} >= {"transcript after the last word", *stopped}
    assert main(["bench", "cascade", "--model", "x"]) == USAGE
    assert main(["bench", "codec", "--llm", "responder"]) == USAGE
