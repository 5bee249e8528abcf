"""`personaplex speak`: texts in, speech out, with real voices, through files and pipes."""

from __future__ import annotations

import io
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from personaplex.audio import read_audio
from personaplex.cascade import aloud
from personaplex.cascade.aloud import Unsaid, read_aloud
from personaplex.cascade.engine import Piece
from personaplex.cascade.registry import open_recogniser, open_synthesiser
from personaplex.cli import speak
from personaplex.cli.main import main
from personaplex.units import SAMPLE_RATE
from tests.conftest import SOAK

USAGE, VOICE, OUTPUT, SYNTHESIS, ENGINE = 2, 5, 6, 9, 12
QUESTION = "What are your opening hours on Sunday please?"


def understood(pcm: np.ndarray) -> set[str]:
    """Words that PocketSphinx hears in sound at 24 kHz."""
    listening = open_recogniser("pocketsphinx").listen("en")
    listening.push(soxr.resample(np.pad(pcm, 6_000), SAMPLE_RATE, 16_000))
    return set(listening.finish().text.split())


@pytest.mark.parametrize(("voice", "suffix"), [("rms", ".wav"), ("awb", ".flac")])
def test_what_is_spoken_is_understood(
    tmp_path: Path, voice: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"spoken{suffix}"
    assert main(["speak", QUESTION, "--voice", voice, "--language", "en", "--output", str(output)]) == 0
    said = capsys.readouterr()
    pcm = read_audio(output)
    own = sum(len(piece.pcm) / piece.rate for piece in open_synthesiser("flite").say(QUESTION, voice))
    assert abs(len(pcm) - own * SAMPLE_RATE) <= 1, "all of it, at our rate"
    assert said.out == "" and said.err == f"wrote {output}: {len(pcm) / SAMPLE_RATE:.1f} s\n"
    assert {"what", "are", "your", "opening", "sunday", "please"} <= understood(pcm)
    assert list(tmp_path.iterdir()) == [output]


def test_a_file_is_read_without_what_is_no_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, output, plain = tmp_path / "notes.md", tmp_path / "a.wav", tmp_path / "b.wav"
    text.write_text(
        f"\ufeff## {QUESTION} 😀\n\n```\nx = 1\n```\nSee https://www.example.org/a?b=c.\n", encoding="utf-8"
    )
    assert main(["speak", str(text), "-o", str(output), "--quiet"]) == 0
    same = f"{QUESTION}\nThe code is on the screen.\nSee example dot org."
    assert main(["speak", same, "-o", str(plain), "--quiet"]) == 0
    assert output.read_bytes() == plain.read_bytes() and capsys.readouterr().err == ""
    stopped, stop = socket.socketpair()
    with stopped, stop, speak._text(str(text), stopped) as parts:
        assert "".join(parts) == text.read_text(encoding="utf-8").removeprefix("\ufeff")


def test_through_pipes_the_first_sentence_is_spoken_before_the_text_has_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "personaplex", "speak", "-", "--output", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        watchdog = threading.Timer(120, program.kill)  # a program that waits for ever ends the test, not the suite
        watchdog.start()
        assert program.stdin is not None and program.stdout is not None and program.stderr is not None
        program.stdin.write(f"{QUESTION} And".encode())
        program.stdin.flush()
        first = program.stdout.read(44 + 2 * SAMPLE_RATE)  # would wait for ever if nothing were said before the end
        program.stdin.write(b" then?")
        program.stdin.close()
        rest = program.stdout.read()
        assert (program.wait(), program.stderr.read()) == (0, b"")
        watchdog.cancel()
    output = tmp_path / "whole.wav"
    assert main(["speak", f"{QUESTION} And then?", "-o", str(output), "-q"]) == 0
    header, spoken = (first + rest)[:44], (first + rest)[44:]
    assert header[:4] == b"RIFF" and header[8:16] == b"WAVEfmt " and header[36:40] == b"data"
    assert struct.unpack("<HHI", header[20:28]) == (1, 1, SAMPLE_RATE)
    assert spoken == output.read_bytes()[44:]


@given(cuts=st.lists(st.integers(0, 110), max_size=8))
def test_a_sentence_goes_on_after_the_end_of_a_line(cuts: list[int]) -> None:
    """As in a text whose lines were broken at a width; paragraphs, lists and headings stay apart."""
    text = (
        "# Times\n\nIt was the best, it\nwas the worst.\nSo it was\n\nand is:\n\n- milk\n- eggs\n1. One\nand\n2. Two\n"
    )
    at = [0, *sorted(cuts), len(text)]
    parts = [text[first:last] for first, last in itertools.pairwise(at)]
    assert list(aloud._sentences(parts)) == [
        "# Times", "It was the best, it was the worst.", "So it was", "and is:",
        "- milk", "- eggs", "1. One and", "2. Two",
    ]  # fmt: skip


def test_ctrl_c_does_not_wait_for_a_text_that_has_not_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> AbstractContextManager[speak.Write]:
        def write(pcm: np.ndarray) -> None:
            time.sleep(0.5)  # meanwhile the next sentence is asked for, and its text is waited for
            raise KeyboardInterrupt

        return nullcontext(write)

    reader, writer = os.pipe()
    came: list[int] = []
    give_up = threading.Timer(20, lambda: came.append(os.write(writer, b" More to say. And more.\n" * 9)))
    with os.fdopen(reader, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(speak, "audio_file", interrupted)
        os.write(writer, f"{QUESTION} And".encode())
        give_up.start()
        assert main(["speak", "-", "-o", str(tmp_path / "x.wav")]) == 130
        give_up.cancel()
        os.close(writer)
    assert not came and "interrupted" in capsys.readouterr().err


def test_nobody_reads_to_the_end_of_a_pipe() -> None:
    line = f"printf '%s' '{QUESTION * 20}' | {sys.executable} -m personaplex speak - -o - | head -c 1000 | wc -c"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1000", "")


def test_what_a_voice_cannot_say_is_told_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """flite knows no Chinese."""
    output, without = tmp_path / "a.wav", tmp_path / "b.wav"
    assert main(["speak", f"{QUESTION} 你好。 And then?", "-o", str(output)]) == SYNTHESIS
    told, wrote = capsys.readouterr().err.splitlines()
    assert told == "personaplex: not said: flite makes no sound of it: '你好。'" and wrote.startswith("wrote")
    assert main(["speak", f"{QUESTION} And then?", "-o", str(without)]) == 0
    assert output.read_bytes() == without.read_bytes()
    output.unlink()
    assert main(["speak", "你好。", "-o", str(output)]) == SYNTHESIS
    assert not output.exists()


def pages(n_words: int) -> Iterator[str]:
    """A text of so many words, a line at a time."""
    sentence = "The ship sailed on through the night, and nobody on board knew where the captain was going. "
    for _ in range(n_words // 17):
        yield sentence


def test_ten_thousand_words_are_spoken_as_they_are_read() -> None:
    """Never more than a sentence is read ahead, and no more is kept at the end than at the beginning."""
    n_words = 10_000 if SOAK else 600
    n_read = n_begun = 0
    flite = open_synthesiser("flite")

    class Counted:
        voices, languages, close = flite.voices, flite.languages, flite.close

        def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
            nonlocal n_begun
            n_begun += 1
            yield from flite.say(text, voice, language)

    def text() -> Iterator[str]:
        nonlocal n_read
        for part in pages(n_words):
            n_read += 1
            yield part

    longest, kept = 0, []
    tracemalloc.start()
    try:
        for piece in read_aloud(text(), Counted(), "flite", "kal"):
            assert not isinstance(piece, Unsaid)
            longest = max(longest, len(piece))
            kept.append(tracemalloc.get_traced_memory()[0])
            assert n_read <= n_begun + 1
            del piece
    finally:
        tracemalloc.stop()
    assert n_begun == n_words // 17 and longest < 12 * SAMPLE_RATE
    half = len(kept) // 2
    assert max(kept[half:]) < max(kept[:half]) + 500_000


def test_a_text_that_turns_out_to_be_none_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speak, "_BLOCK", 64)
    text, output = tmp_path / "notes.txt", tmp_path / "a.wav"
    output.write_bytes(b"older")
    text.write_bytes(b"One two three. " * 10 + b"\xff\xfe")
    assert main(["speak", str(text), "-o", str(output)]) == USAGE
    assert output.read_bytes() == b"older" and {p.name for p in tmp_path.iterdir()} == {"notes.txt", "a.wav"}


BAD = [
    (["x", "--engine", "nothing"], USAGE, "unknown synthesiser 'nothing'; there are"),
    (["x", "--engine", "flite:big"], USAGE, "its options are: none"),
    (["x", "--voice", "nobody"], VOICE, "flite has no voice 'nobody'; there are slt, rms, awb, kal16, kal"),
    (["x", "--language", "xx"], USAGE, "no voice here speaks 'xx'; there is en"),
    (["x", "--engine", "piper"], USAGE, "piper needs a voice"),
    (["x", "--engine", "piper:none.onnx"], ENGINE, "there is no file none.onnx"),
    (["x", "--engine", "piper:."], ENGINE, "there is no file"),
    (["x", "--engine", "piper:~no-such-user/x"], ENGINE, "there is no file ~no-such-user/x.onnx"),
    (["x", "--engine", "kokoro:none"], ENGINE, "there is no file none.onnx"),
    (["x", "-o", "a.doc"], USAGE, "the suffix must be one of"),
    (["x", "-o", "no/a.wav"], OUTPUT, "the folder no does not exist"),
    (["x", "-o", "."], OUTPUT, ". is a folder"),
    (["."], USAGE, ". is a folder; name a text file"),
    (["missing.txt"], USAGE, "missing.txt does not exist; name a text file, or give the text itself"),
    (["data.bin"], USAGE, "data.bin is not a text in UTF-8"),
    (["cut.txt"], USAGE, "cut.txt is not a text in UTF-8: unexpected end of data"),
    (["zeros.bin"], USAGE, "zeros.bin is not a text: it holds a zero byte"),
    ([""], USAGE, "there is nothing to say: the text holds no words"),
    (["😀 --- ***"], USAGE, "there is nothing to say: the text holds no words"),
    (["-"], USAGE, "there is nothing to say: the text holds no words"),
]


@pytest.mark.parametrize(("arguments", "code", "told"), BAD, ids=[" ".join(row[0]) or "empty" for row in BAD])
def test_bad_input_is_one_line(
    arguments: list[str], code: int, told: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONAPLEX_MODELS", str(tmp_path / "models"))
    (tmp_path / "data.bin").write_bytes(bytes(range(1, 256)))
    (tmp_path / "cut.txt").write_bytes("Five €".encode()[:-1])
    (tmp_path / "zeros.bin").write_bytes(bytes(99))
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    output = [] if "-o" in arguments else ["-o", "a.wav"]
    assert main(["speak", *arguments, *output, "--quiet"]) == code
    said = capsys.readouterr()
    assert said.err.startswith("personaplex: ") and said.err.count("\n") == 1 and told in said.err
    assert said.out == "" and set(tmp_path.iterdir()) == before
