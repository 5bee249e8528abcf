"""`personaplex voices`: cloning, listing, playing and removing voices of one's own."""

from __future__ import annotations

import json
import os
import pty
import re
import runpy
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from personaplex import PersonaPlex
from personaplex.audio import read_audio, write_audio
from personaplex.checkpoint.tensors import TensorFile
from personaplex.checkpoint.user_voices import UserVoices
from personaplex.cli.main import main
from personaplex.errors import PersonaError
from tests.conftest import PARITY

TINY = ["--model", str(PARITY)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def desk(tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four seconds of somebody, half a second of a question, and one for voices that is not there yet."""
    write_audio(tmp_path / "clip.wav", np.concatenate([speech, speech])[: 4 * 24_000])
    write_audio(tmp_path / "question.wav", speech[:12_000])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONAPLEX_VOICES", str(tmp_path / "mine"))
    monkeypatch.setattr("sys.stdin", None)
    return tmp_path


def add(*more: str) -> int:
    return main(["voices", "add", "ann", "clip.wav", *TINY, "--consent", *more])


def test_a_clone_from_adding_to_removing(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["voices", "list"]) == 0
    assert "no voices in" in capsys.readouterr().err
    assert add("--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["seconds"] == 4.0 and Path(made["file"]) == desk / "mine" / "ann.safetensors"
    assert Path(made["file"]).stat().st_size < 4_000
    assert main(["voices", "list", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)["ann"]
    assert (about["source"], about["consent"], about["seconds"]) == ("clip.wav", "yes", 4.0)
    assert len(about["codec"]) == len(about["source_sha256"]) == 64 and about["date"][:2] == "20"
    assert main(["voices", "list"]) == 0
    assert capsys.readouterr().out.split() == ["ann", "4.0", "s", about["date"], "clip.wav"]
    assert main(["voices", "play", "ann", *TINY, "-o", "heard.wav"]) == 0
    assert len(read_audio(desk / "heard.wav")) == 4 * 24_000
    assert main(["voices", "remove", "ann"]) == 0 and not list((desk / "mine").iterdir())


def test_it_is_the_voice_of_the_clip_and_every_command_finds_it(desk: Path, model: PersonaPlex) -> None:
    assert add() == 0
    mine, clip = model.load_voice(desk / "mine" / "ann.safetensors"), model.load_voice(desk / "clip.wav")
    assert mine.codes is not None and clip.codes is not None and np.array_equal(mine.codes, clip.codes)
    common = [*TINY, "--seed", "3", "-q"]
    respond = ["respond", *common, "--max-steps", "3", "-i", "question.wav"]
    for voice in ("ann", "clip.wav"):
        assert main([*respond, "--voice", voice, "-o", f"r-{Path(voice).stem}.wav"]) == 0
        talk = ["talk", *common, "--max-seconds", "0", "-i", "question.wav", "-o", f"t-{Path(voice).stem}.wav"]
        assert main([*talk, "--voice", voice]) == 0
    assert (desk / "r-ann.wav").read_bytes() == (desk / "r-clip.wav").read_bytes()
    assert (desk / "t-ann.wav").read_bytes() == (desk / "t-clip.wav").read_bytes()


def test_a_persona_may_have_a_voice_of_ones_own(desk: Path) -> None:
    assert add() == 0
    (desk / "mine.toml").write_text('[me]\nprompt = "You are Ann."\nvoices = ["ann"]\n')
    persona, role = ["--persona", "me", "--personas", "mine.toml"], ["--system-prompt-text", "You are Ann."]
    for command in (["respond", "--max-steps", "2"], ["talk", "--max-seconds", "0"]):
        for name, who in (("a.wav", persona), ("b.wav", [*role, "--voice", "ann"])):
            assert main([*command, *TINY, "--seed", "3", "-q", "-i", "question.wav", "-o", name, *who]) == 0
        assert (desk / "a.wav").read_bytes() == (desk / "b.wav").read_bytes()


def test_two_voices_are_blended(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of the model's and a clone: alone at either end, something else between."""
    assert add() == 0

    def said(voice: str) -> bytes:
        arguments = ["--max-steps", "3", "--seed", "3", "-q", "-i", "question.wav", "-o", "a.wav", "--voice", voice]
        assert main(["respond", *TINY, *arguments]) == 0
        return (desk / "a.wav").read_bytes()

    for name, weight in (("none", "0"), ("half", "0.5")):
        assert main(["voices", "blend", name, "VOICE0", "ann", "--weight", weight, *TINY]) == 0
    assert said("none") == said("VOICE0") != said("half") != said("ann")
    capsys.readouterr()
    assert main(["voices", "list", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)["half"]
    assert (about["seconds"], about["source"]) == (None, "0.5 VOICE0 + 0.5 ann")
    for arguments, code, told in (
        (["play", "half", *TINY, "-o", "b.wav"], 5, "is a blend"),
        (["blend", "half", "VOICE0", "ann", *TINY], 5, "already"),
        (["blend", "VOICE0", "VOICE0", "ann", *TINY], 5, "of its own"),
        (["blend", "other", "VOICE0", "nobody", *TINY], 5, "unknown voice"),
        (["blend", "other", "VOICE0", "clip.wav", *TINY], 5, "`voices add` makes a voice of a recording"),
        (["blend", "other", "VOICE0", "ann", "--weight", "2", *TINY], 2, "from 0 to 1"),
    ):
        assert main(["voices", *arguments]) == code, told
        assert told in capsys.readouterr().err


def test_the_measurement_of_blends_counts_every_answer(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "measure_blend.py"))
    arguments = ["--model", str(PARITY), "--voices", "VOICE0", "clip.wav", "--answers", "2", "--weights", "0", "0.5"]
    script["main"]([*arguments, "--input", "question.wav", "--max-seconds", "0"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| weight of clip.wav | nearest to | distance to VOICE0 and clip.wav |" and len(rows) == 2
    for row in rows:
        shares = re.findall(r"(\S+) (\d)/2", row)
        assert {name for name, _ in shares} <= {"VOICE0", "clip.wav"} and sum(int(n) for _, n in shares) == 2


def test_a_voice_of_another_codec_is_refused(
    desk: Path, model: PersonaPlex, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add() == 0
    path = desk / "mine" / "ann.safetensors"
    file = TensorFile(path)
    mx.save_safetensors(str(path), {"codes": file.take("codes")}, metadata={**file.metadata, "codec": "0" * 64})
    with pytest.raises(PersonaError, match="made with the codec of"):
        model.load_voice(path)
    assert main(["voices", "play", "ann", *TINY, "-o", "heard.wav"]) == 5
    assert "made with the codec of" in capsys.readouterr().err


def spoil(desk: Path, pcm: np.ndarray) -> None:
    soundfile.write(desk / "clip.wav", pcm, 24_000, subtype="FLOAT")


def test_clips_that_are_no_good_are_refused_with_the_reason(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = read_audio(desk / "clip.wav")
    spoiled = {
        "is 2.9 s long; a voice needs 3 s": good[: int(2.9 * 24_000)],
        "at most 30 s": np.tile(good, 8),
        "is silent": good * 0.001,
        "is silent: 0.": np.where(np.arange(len(good)) < 12_000, good, 0),
        "is clipped": np.clip(good * 20, -1, 1),
        "not numbers": np.where(np.arange(len(good)) == 7, np.nan, good),
    }
    for reason, pcm in spoiled.items():
        spoil(desk, pcm)
        assert add() == 3, reason
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
        assert not (desk / "mine").exists()


def test_mistakes_are_one_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[list[str], int, str]] = [
        (["add", "ann", "clip.wav", *TINY], 2, "add --consent"),
        (["add", "ann", "-", *TINY, "--consent"], 2, "name a file"),
        (["add", "../ann", "clip.wav", *TINY, "--consent"], 5, "no name for a voice"),
        (["add", "VOICE0", "clip.wav", *TINY, "--consent"], 5, "of its own"),
        (["add", "ann", "none.wav", *TINY, "--consent"], 3, "does not exist"),
        (["remove", "ann"], 5, "there are none yet"),
        (["play", "ann", *TINY, "-o", "a.wav"], 5, "unknown voice"),
    ]
    for arguments, code, told in cases:
        assert main(["voices", *arguments]) == code, told
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert add() == 0 and add() == 5
    assert "there is a voice 'ann' already" in capsys.readouterr().err
    (desk / "mine" / "broken.safetensors").write_bytes(b"no")
    assert main(["voices", "list"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("ann ") and "broken.safetensors" in printed.err


def test_a_folder_that_cannot_be_made(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "mine").write_text("a file")
    assert add() == 6
    assert "cannot make the folder" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2)])
def test_consent_is_asked_for_in_a_terminal(desk: Path, answer: str, code: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "personaplex", "voices", "add", "ann", "clip.wav", *TINY]
    child = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(ours, answer.encode())
    _, told = child.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert child.returncode == code and b"agreed to have it cloned?" in told, told
    assert UserVoices(desk / "mine").names() == (["ann"] if code == 0 else [])
