"""`personaplex talk` as it is used: in a terminal, in a pipe, with files for microphone and speaker."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import soundfile

from personaplex.audio import read_audio, write_audio
from personaplex.cli.main import main
from personaplex.engine.generator import Generator
from personaplex.engine.prompt import Prompt
from personaplex.units import FRAME_SECONDS
from tests.conftest import PARITY

QUESTION = Path(__file__).parents[2] / "examples" / "question.wav"
TALK = ["talk", "--model", str(PARITY), "--voice", "VOICE0", "--seed", "3"]


@pytest.fixture
def desk(tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one second of a question."""
    write_audio(tmp_path / "question.wav", speech[:24_000])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    return tmp_path


class Terminal:
    """`personaplex talk` in a pseudo-terminal of 80 by 24."""

    def __init__(self, *arguments: str, stderr: IO[bytes] | None = None) -> None:
        self._end, other = pty.openpty()
        command = [sys.executable, "-m", "personaplex", *TALK, *arguments]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self._child = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=stderr or other, env=environment, start_new_session=True
        )
        self._other = other
        self.shown = ""

    def until(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Read until `pattern` was shown; what was read before it is forgotten."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} was not shown: {self.shown[-3000:]!r}"
            if select.select([self._end], [], [], 0.1)[0]:
                self.shown += os.read(self._end, 65536).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def echoes(self) -> bool:
        import termios

        return bool(termios.tcgetattr(self._other)[3] & termios.ECHO)

    def leave(self) -> int:
        """The exit code, once everything was shown."""
        deadline = time.monotonic() + 60
        while self._child.poll() is None:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._end], [], [], 0.05)[0]:
                self.shown += os.read(self._end, 65536).decode(errors="replace")
        while select.select([self._end], [], [], 0.05)[0]:
            self.shown += os.read(self._end, 65536).decode(errors="replace")
        return self._child.returncode

    def vanish(self) -> int:
        """The window is closed; the exit code."""
        os.close(self._other)
        os.close(self._end)
        self._end, self._other = os.open(os.devnull, os.O_RDWR), os.open(os.devnull, os.O_RDWR)
        return self._child.wait(60)

    def close(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        os.close(self._end)
        os.close(self._other)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_speech_in_speech_out_and_both_on_record(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        files = ["-i", "question.wav", "-o", f"{name}.wav", "--record", f"{name}-both.wav", "--max-seconds", "1"]
        assert main([*TALK, *files]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("agent: ") and "ready (seed 3)" in printed.err
    assert (desk / "a.wav").read_bytes() == (desk / "b.wav").read_bytes(), "without a clock, a seed repeats it"
    both, _ = soundfile.read(desk / "a-both.wav", dtype="float32")
    agent, user = read_audio(desk / "a.wav"), read_audio(desk / "question.wav")
    assert np.array_equal(both[:, 0], agent) and np.allclose(both[: len(user), 1], user, atol=1e-4)
    assert len(agent) == pytest.approx(2 * 24_000, abs=1920)
    report = json.loads((desk / "a-both.json").read_text())
    assert (report["mode"], report["dropped_frames"], report["gaps"]) == ("duplex", 0, 0)
    texts = [event["text"] for event in report["events"] if event["event"] == "agent text"]
    assert texts and "".join(texts).split() == printed.out.splitlines()[0].removeprefix("agent: ").split()


def test_the_clock_is_kept_when_asked_for(desk: Path) -> None:
    """No sample is played before its time; on a busy machine the end may come late, and is silence."""
    began = time.monotonic()
    assert main([*TALK, "-q", "-i", "question.wav", "-o", "a.wav", "--max-seconds", "0.5", "--realtime"]) == 0
    seconds = len(read_audio(desk / "a.wav")) / 24_000
    assert 1.5 - 2 * FRAME_SECONDS <= seconds <= time.monotonic() - began


def test_turns_by_voice_activity(desk: Path) -> None:
    """What is no speech is nobody's turn: the agent hears nothing, and says nothing."""
    assert (
        main([*TALK, "-i", "question.wav", "-o", "a.wav", "--mode", "turns", "--onset", "1", "--record", "r.wav"]) == 0
    )
    assert not read_audio(desk / "a.wav").any()
    assert [event["event"] for event in json.loads((desk / "r.json").read_text())["events"]] == []


def test_a_spoken_turn_is_answered_and_remembered(desk: Path) -> None:
    """Speech, a pause, and the same again: the agent hears two turns, one after the other, in one conversation."""
    spoken = read_audio(QUESTION)
    write_audio(desk / "twice.wav", np.concatenate([spoken, np.zeros(3 * 24_000, np.float32), spoken]))
    voice_activity = ["--mode", "turns", "--silence-seconds", "0.6"]
    assert (
        main(
            [*TALK, "-q", "-i", "twice.wav", "-o", "a.wav", "--record", "r.wav", "--max-seconds", "2", *voice_activity]
        )
        == 0
    )
    report = json.loads((desk / "r.json").read_text())
    events = [(event["event"], event["at"]) for event in report["events"] if event["event"] != "ready"]
    assert [what for what, _ in events[:2]] == ["user started", "user stopped"]
    assert 0.3 < events[0][1] < 1.5 and events[1][1] < len(spoken) / 24_000 + 1.5
    agent = read_audio(desk / "a.wav")
    assert not agent[: int(events[1][1] * 24_000)].any(), "the agent says nothing while the user speaks"
    assert agent[int(events[1][1] * 24_000) :].any() and ("agent started", pytest.approx(events[1][1], abs=2)) in events
    assert report["gaps"] == 0


def test_the_screen_shows_levels_captions_and_step_times(desk: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal("-i", "question.wav", "-o", "out.wav", "--realtime", "--max-seconds", "30")
    terminals.append(terminal)
    terminal.until(re.escape("\033[?1049h"))
    terminal.until(r"personaplex talk .*0:0\d  both")
    terminal.until(r"you    \[#+\.*\] +-?\d+ dB")
    terminal.until(r"agent  \[#+\.*\] +-?\d+ dB")
    terminal.until(r"step \d+ ms of 80.*buffer \d+ ms  gaps \d+  dropped frames \d+")
    assert not terminal.echoes()
    terminal.type("!voice nobod")
    terminal.until("> !voice nobod")
    terminal.type("x\x7fy\r")
    terminal.until("unknown voice 'nobody'")
    terminal.type("!save half.safetensors\r")
    terminal.until("saved half.safetensors")
    terminal.type("!quit\r")
    assert terminal.leave() == 0, terminal.shown
    assert terminal.echoes() and "\033[?1049l" in terminal.shown
    after = terminal.shown.split("\033[?1049l")[1]
    assert "agent: " in after and "Traceback" not in after
    assert (desk / "half.safetensors").exists() and len(read_audio(desk / "out.wav"))
    files = ["-i", "question.wav", "-o", "on.wav", "--resume", "half.safetensors", "--max-seconds", "0.2"]
    assert main([*TALK, *files]) == 0


def test_push_to_talk_in_plain_lines(desk: Path, terminals: list[Terminal]) -> None:
    arguments = ["-i", "question.wav", "--realtime", "--plain", "--mode", "push", "--record", "both.wav"]
    terminal = Terminal(*arguments, "--max-seconds", "40")
    terminals.append(terminal)
    terminal.until(r"ready \(seed 3\)")
    terminal.type("\n")
    time.sleep(0.6)
    terminal.type("\n")
    terminal.until("agent: ")
    terminal.type("!reset\n")
    terminal.until(r"ready \(seed 3\)")
    terminal.signal(signal.SIGINT)
    assert terminal.leave() == 0, terminal.shown
    assert "\033[?1049h" not in terminal.shown
    events = [event["event"] for event in json.loads((desk / "both.json").read_text())["events"]]
    assert events[:2] == ["user started", "user stopped"] and "agent text" in events and "reset" in events


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_puts_the_terminal_back_and_keeps_the_recording(
    number: signal.Signals, desk: Path, terminals: list[Terminal]
) -> None:
    terminal = Terminal("-i", "question.wav", "--realtime", "--max-seconds", "30", "--record", "both.wav")
    terminals.append(terminal)
    terminal.until(r"0:0\d  both")
    terminal.signal(number)
    assert terminal.leave() == 0
    assert terminal.echoes() and (desk / "both.wav").exists() and (desk / "both.json").exists()


def test_a_terminal_that_vanishes_ends_it_and_keeps_the_recording(desk: Path, terminals: list[Terminal]) -> None:
    with (desk / "err").open("wb") as told:
        files = ["-i", "question.wav", "--realtime", "--max-seconds", "30", "--record", "both.wav"]
        terminals.append(Terminal(*files, stderr=told))
        terminals[0].until(r"0:0\d  both")
        assert terminals[0].vanish() in (0, OUTPUT)
    assert (desk / "both.wav").exists() and (desk / "both.json").exists()
    assert b"Traceback" not in (desk / "err").read_bytes()


def test_without_the_libraries_it_says_what_to_install(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    for arguments in (["--headphones"], ["--list-devices"], ["--echo", "gate"], ["--mode", "push"]):
        assert main([*TALK, *arguments]) == DEVICE
        (line,) = capsys.readouterr().err.splitlines()
        assert "pip install 'personaplex-mlx[talk]'" in line
    monkeypatch.setitem(sys.modules, "livekit", None)
    assert main(TALK) == USAGE
    assert "echo cancellation needs the livekit package" in capsys.readouterr().err


def prompts_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    reading = Generator.reading

    def count(self: Generator, prompt: Prompt, *more: Any) -> Any:
        read.append(prompt.n_frames)
        return reading(self, prompt, *more)

    monkeypatch.setattr(Generator, "reading", count)
    return read


def test_a_role_that_was_read_is_not_read_again(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the next start; a file that is damaged is told of in a line, and made anew; and it can be turned off."""
    cache = desk / "cache"
    monkeypatch.setenv("PERSONAPLEX_CACHE", str(cache))
    read = prompts_read(monkeypatch)

    def start(name: str, *more: str) -> int:
        assert main([*TALK, "-i", "question.wav", "-o", name, "--max-seconds", "0", "--persona", "sage", *more]) == 0
        n = len(read)
        read.clear()
        return n

    assert start("off.wav", "--no-prompt-cache") == 1 and not cache.exists()
    assert start("cold.wav") == 1
    (kept,) = (cache / "prompts").iterdir()
    capsys.readouterr()
    assert start("warm.wav") == 0 and "damaged" not in capsys.readouterr().err
    assert len({(desk / name).read_bytes() for name in ("off.wav", "cold.wav", "warm.wav")}) == 1
    good = kept.read_bytes()
    kept.write_bytes(good[:-9] + b"something")
    assert start("again.wav") == 1 and kept.read_bytes() == good
    told = [line for line in capsys.readouterr().err.splitlines() if "ignored and made anew" in line]
    assert len(told) == 1


def test_a_window_that_does_not_fit_is_refused_with_the_numbers(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["-i", "question.wav", "--max-seconds", "0"]
    assert main([*TALK, *files, "--context-seconds", "2"]) == 0
    capsys.readouterr()
    assert main([*TALK, *files, "--context-seconds", "1e9"]) == USAGE and "window" in capsys.readouterr().err
    monkeypatch.setattr("personaplex.runtime.device.available_bytes", lambda: 1 << 20)
    assert main([*TALK, *files]) == BACKEND
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("personaplex: ")]
    assert "1 slot needs" in line and "0.00 GiB are available" in line and "context seconds" in line


def test_typed_commands_reach_the_model(desk: Path, terminals: list[Terminal]) -> None:
    terminal = Terminal("-i", "question.wav", "--realtime", "--plain", "--max-seconds", "60")
    terminals.append(terminal)
    terminal.until(r"ready \(seed 3\)")
    terminal.type("!say one two\n")
    terminal.until("agent: (?s:.*)one two")
    terminal.type("!stop\n")
    terminal.type("!persona sage keep\n")
    terminal.until("another role or voice, and all remembered")
    terminal.type("hello\n")
    terminal.until("typed text is not heard; there are .*!say TEXT")
    terminal.type("!quit\n")
    assert terminal.leave() == 0


BACKEND = 7
USAGE, AUDIO, CHECKPOINT, PERSONA, OUTPUT, DEVICE = 2, 3, 4, 5, 6, 11
FILES = ["-i", "question.wav"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["-o", "a.wav"], USAGE, "go with --input"),
        ([*FILES, "--onset", "0.2"], USAGE, "0 <= offset <= onset <= 1"),
        ([*FILES, "--silence-seconds", "-1"], USAGE, "must be 0 or more"),
        ([*FILES, "--max-seconds", "nan"], USAGE, "must be 0 or more"),
        ([*FILES, "-o", "question.wav"], USAGE, "must be different files"),
        ([*FILES, "-o", "a.wav", "--record", "a.wav"], USAGE, "must be different files"),
        ([*FILES, "--headphones", "--echo", "gate"], USAGE, "leave out --echo"),
        ([*FILES, "--record", "a.ogg"], USAGE, ".wav or .flac"),
        ([*FILES, "--record", "nowhere/a.wav"], OUTPUT, "does not exist"),
        (["-i", "nothing.wav"], AUDIO, "does not exist"),
        ([*FILES, "--persona", "nobody"], PERSONA, "unknown persona 'nobody'; there are aria"),
        ([*FILES, "--personas", "nothing.toml"], PERSONA, "cannot be read"),
        ([*FILES, "--system-prompt", "nothing.txt"], PERSONA, "unknown prompt"),
        ([*FILES, "--voice", "nobody"], PERSONA, "unknown voice"),
        ([*FILES, "--resume", "question.wav"], CHECKPOINT, "question.wav"),
        ([*FILES, "--seed", "-1"], USAGE, "must be"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, told: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(desk.iterdir())
    assert main([*TALK, *arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("loading ", "note: "))]
    assert len(lines) == 1 and lines[0].startswith("personaplex: ") and told in lines[0], lines
    assert sorted(desk.iterdir()) == before


def test_an_output_on_a_full_disk_is_one_line(desk: Path, terminals: list[Terminal]) -> None:
    shell = f"ulimit -f 40; '{sys.executable}' -m personaplex {' '.join(TALK)} -q -i question.wav -o a.wav </dev/null"
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {shell}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (OUTPUT, 1), done.stderr
    assert done.stdout.startswith("agent: ") and done.stdout.endswith("\n"), "the last line is ended"
    assert [path.name for path in desk.iterdir()] == ["question.wav"]
