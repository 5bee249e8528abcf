"""`personaplex transcribe` as its users run it, with a real recogniser and voices that it understands."""

from __future__ import annotations

import functools
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soxr

from personaplex.audio import write_audio
from personaplex.cascade.registry import open_synthesiser
from personaplex.cli.main import main
from personaplex.units import SAMPLE_RATE
from tests.conftest import AUDIO
from tests.whisper_model import LANGUAGE, WORDS, write_whisper

SAID = {"rms": "What are your opening hours on Sunday please?", "awb": "Will you ship the replacement part tomorrow?"}
HEARD = {"rms": {"what", "are", "your", "opening", "sunday", "please"}, "awb": {"will", "replacement", "tomorrow"}}


@functools.cache
def say(voice: str) -> np.ndarray:
    (piece,) = open_synthesiser("flite").say(SAID[voice], voice)
    return np.asarray(soxr.resample(piece.pcm, piece.rate, SAMPLE_RATE), np.float32)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recogniser that is done at once, and hears `WORDS` in everything."""
    return f"faster-whisper:{write_whisper(tmp_path_factory.mktemp('model') / 'whisper')}"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording of two people (from 1 s and from 6 s on), and one of nobody."""
    both = np.zeros(10 * SAMPLE_RATE, np.float32)
    for voice, start in (("rms", 1), ("awb", 6)):
        pcm = say(voice)
        both[start * SAMPLE_RATE :][: len(pcm)] += pcm
    write_audio(tmp_path / "both.flac", both)
    write_audio(tmp_path / "nobody.wav", np.zeros(2 * SAMPLE_RATE, np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERSONAPLEX_RECOGNISER", raising=False)
    return tmp_path


def transcribe(*arguments: object) -> int:
    return main(["transcribe", *map(str, arguments)])


def test_a_line_for_each_utterance(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe("both.flac") == 0
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()
    assert HEARD["rms"] <= set(first.split()) and HEARD["awb"] <= set(second.split()) and shown.err == ""
    assert transcribe("both.flac", "-o", "-") == 0
    assert capsys.readouterr() == (shown.out, "") and not (desk / "-").exists()


def test_a_terminal_shows_how_far_it_is_unless_it_shows_the_text(
    desk: Path, whisper: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAPLEX_RECOGNISER", whisper)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert transcribe("both.flac", "-o", "both.txt") == 0
    assert re.fullmatch(r"(\rboth\.flac: 0\.[01] min){2}\nwrote both\.txt\n", capsys.readouterr().err)
    assert transcribe("both.flac") == 0
    assert capsys.readouterr().err == ""


def test_json_has_the_times_of_words_in_the_whole_recording(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe("both.flac", "nobody.wav", "--format", "json", "--language", "en") == 0
    shown = capsys.readouterr()
    both, nobody = map(json.loads, shown.out.splitlines())
    assert (both["file"], both["seconds"], both["engine"]) == ("both.flac", 10.0, "pocketsphinx")
    assert both["text"] == " ".join(said["text"] for said in both["utterances"])
    for said, start in zip(both["utterances"], (1, 6), strict=True):
        assert start - 0.1 < said["start"] < start + 0.5 and said["end"] < start + 4 and said["language"] == "en"
        assert [word["text"] for word in said["words"]] == said["text"].split()
        times = [word[end] for word in said["words"] for end in ("start", "end")]
        assert times == sorted(times) and (times[0], times[-1]) == (said["start"], said["end"])
    assert nobody["utterances"] == [] and nobody["text"] == ""
    assert shown.err == "note: no words are heard in nobody.wav (2.0 s)\n"


@pytest.mark.parametrize(("suffix", "point"), [("srt", ","), ("vtt", ".")])
def test_subtitles_by_the_outputs_suffix(
    desk: Path, suffix: str, point: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transcribe("both.flac", "-o", f"both.{suffix}") == 0
    written = (desk / f"both.{suffix}").read_text()
    assert (written.startswith("WEBVTT\n\n"), written.startswith("1\n")) == (suffix == "vtt", suffix == "srt")
    times = re.findall(rf"^00:00:0(\d)\{point}\d{{3}} --> 00:00:\d\d\{point}\d{{3}}$", written, re.MULTILINE)
    assert times == ["1", "6"] and "replacement" in written
    assert capsys.readouterr() == ("", f"wrote both.{suffix}\n")


def test_several_recordings_and_standard_input(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO((desk / "both.flac").read_bytes()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert transcribe("nobody.wav", "-", "-o", "all.txt", "--quiet") == 0
    lines = (desk / "all.txt").read_text().splitlines()
    assert lines[:2] == ["==> nobody.wav <==", "==> - <=="] and len(lines) == 4 and "tomorrow" in lines[3]
    assert capsys.readouterr() == ("", "")


def test_another_recogniser(
    desk: Path, whisper: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAPLEX_RECOGNISER", whisper)
    assert transcribe("both.flac", "--format", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [said["text"] for said in report["utterances"]] == [" ".join(WORDS)] * 2
    assert {said["language"] for said in report["utterances"]} == {LANGUAGE}
    assert transcribe("both.flac", "--language", "xx") == 2
    assert "does not hear 'xx'" in capsys.readouterr().err


@pytest.mark.skipif(not AUDIO.is_dir(), reason=f"the recordings are not in {AUDIO}")
def test_a_recorded_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe(AUDIO / "input_service.wav") == 0
    assert {"can", "you", "guarantee", "that", "the", "replacement", "tomorrow"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "name a recording to transcribe"),
        (["absent.wav"], 3, "absent.wav does not exist"),
        (["."], 3, ". is a folder"),
        (["empty.wav"], 3, "empty.wav is empty"),
        (["both.flac", "text.wav"], 3, "text.wav is not a recording"),
        (["cut.flac"], 3, "cut.flac was cut short"),
        (["both.flac", "--engine", "nothing"], 2, "unknown recogniser 'nothing'; there are .*faster-whisper"),
        (["both.flac", "--engine", "pocketsphinx:big"], 2, "its options are: none"),
        (["both.flac", "--engine", "faster-whisper:huge"], 12, "cannot load the model 'huge'"),
        (["both.flac", "--language", "de"], 2, "hears English"),
        (["both.flac", "--format", "doc"], 2, "'doc' is not one of"),
        (["both.flac", "nobody.wav", "-o", "x.srt"], 2, "are of one recording"),
        (["-", "-"], 2, "once only"),
        (["both.flac", "-o", "no/such.txt"], 6, "the folder no does not exist"),
        (["both.flac", "-o", "both.flac"], 2, "--output is a recording that is to be read"),
    ],
)
def test_mistakes_are_one_line(
    desk: Path, arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "empty.wav").touch()
    (desk / "text.wav").write_text("hello there, this is no sound\n" * 20)
    hiss = np.random.default_rng(0).normal(0, 0.1, 10 * SAMPLE_RATE).astype(np.float32)
    write_audio(desk / "hiss.flac", hiss)
    (desk / "cut.flac").write_bytes((desk / "hiss.flac").read_bytes()[:200_000])
    before = sorted(desk.iterdir())
    assert transcribe(*arguments) == code
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and re.search(told, shown.err), shown
    assert sorted(desk.iterdir()) == before
