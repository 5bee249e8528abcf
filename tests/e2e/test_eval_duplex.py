"""`personaplex eval duplex` as its users run it: made clips, a model that talks, a folder that was scored before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personaplex.audio import read_audio, write_audio
from personaplex.cli.main import main
from personaplex.evaluate.result import Result
from tests.conftest import PARITY
from tests.duplex.folders import hum, put, turn, words

TAKEN = words((2.5, 3.0), (3.0, 3.6))


def duplex(*arguments: object) -> int:
    return main(["eval", "duplex", *map(str, arguments)])


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Three clips of turn-taking with the answers there: one in time, one too early, one missing."""
    root = tmp_path / "v1.0"
    put(root / "candor_turn_taking" / "1", turn(2.0), TAKEN)
    put(root / "candor_turn_taking" / "2", turn(2.75), TAKEN)
    put(root / "candor_turn_taking" / "3", turn(2.0), TAKEN)
    (root / "candor_turn_taking" / "3" / "output.wav").unlink()
    return root


def test_answers_that_are_there_are_scored(benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert duplex(benchmark, "--json", tmp_path / "result.json") == 0
    shown = capsys.readouterr()
    assert "wrote" in shown.err
    assert "| candor_turn_taking: clips measured |  | 0.667 | 0.208 to 0.939 | 3 |" in shown.out
    assert "| candor_turn_taking: takeover rate (higher is better) |  | 1.000 | 0.342 to 1.000 | 2 |" in shown.out
    assert "| candor_turn_taking: latency of takeovers, s (lower is better) |  | 0.250 |" in shown.out
    assert "begun before the user's end (the latency counts them as 0 s) |  | 0.500 |" in shown.out
    assert "not measured: candor_turn_taking/3:" in shown.err and "does not exist" in shown.err
    kept = Result.load(tmp_path / "result.json")
    assert kept.kind == "duplex" and kept.about["clips"] == 3 and kept.about["recogniser"] is None
    assert [item["latency"] for item in kept.items] == [0.5, -0.25]
    assert [failure.item for failure in kept.failures] == ["candor_turn_taking/3"]


def test_when_nothing_can_be_measured_the_code_says_so(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in benchmark.rglob("turn_taking.json"):
        path.write_text("{")
    assert duplex(benchmark, "--json", tmp_path / "result.json", "--quiet") == 3
    shown = capsys.readouterr()
    assert shown.out == "" and "none of 3 clips could be measured; the first: " in shown.err
    assert len(Result.load(tmp_path / "result.json").failures) == 3


def test_a_made_set_is_talked_through_and_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, out = tmp_path / "made", tmp_path / "out"
    assert duplex("--make", made, "--synthetic", 1, "--only", "turn,pause", "--seed", 3) == 0
    assert "made 2 of 2 clips" in capsys.readouterr().err
    talked = [made, "--out", out, "--json", tmp_path / "a.json"]
    assert duplex(*talked, "--model", PARITY, "--system-prompt-text", "be kind", "--slots", 2) == 0
    first = capsys.readouterr()
    assert "times real time" in first.err and "pocketsphinx" in first.err
    for clip in (out / "synthetic_turn_taking" / "1", out / "synthetic_pause_handling" / "1"):
        user = read_audio(made / clip.relative_to(out) / "input.wav")
        assert len(read_audio(clip / "output.wav")) == len(user)
        assert json.loads((clip / "output.json").read_text())["recogniser"] == "pocketsphinx"
    about = Result.load(tmp_path / "a.json").about
    assert about["synthetic"]["seed"] == 3 and about["words_recognised"] == 2 and about["prompt"] == "be kind"
    assert duplex(made, "--out", out, "--json", tmp_path / "b.json") == 0
    assert capsys.readouterr().out == first.out
    assert Result.load(tmp_path / "b.json").items == Result.load(tmp_path / "a.json").items
    assert duplex(*talked, "--model", PARITY) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_voice_that_there_is_not_ends_it_at_once(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert duplex(benchmark, "--model", PARITY, "--voice", "NOBODY", "--out", tmp_path / "out") == 5
    assert "NOBODY" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_whose_channel_is_whose_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import soundfile

    folder = put(tmp_path / "candor_turn_taking" / "1", turn(2.0), TAKEN)
    soundfile.write(folder / "output.wav", np.stack([hum(4, 3), hum(4, 4)], axis=1), 24_000)
    assert duplex(tmp_path) == 3
    assert "--agent-channel" in capsys.readouterr().err
    assert duplex(tmp_path, "--agent-channel", "right") == 0


def test_a_short_output_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "candor_turn_taking" / "1", turn(2.0), TAKEN)
    write_audio(folder / "output.wav", hum(4, 3))
    assert duplex(tmp_path) == 0
    assert "over 1 s shorter than their inputs: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "name the folder of the clips"),
        (["--synthetic", "2"], "name a --model"),
        (["--synthetic", "0", "--make", "x"], "0 is not in the range"),
        ([".", "--synthetic", "2", "--model", "nano"], "not both"),
        (["."], "holds no clips"),
        (["nowhere"], "is not a folder"),
        ([".", "--only", "turns"], "is not some of"),
        ([".", "--voice", "NATF2"], "is for --model"),
        ([".", "--overwrite"], "is for --model"),
        ([".", "--seed", "-1"], "seed"),
        (["v1.0", "--recogniser", "ears"], "unknown recogniser"),
        (["v1.0", "--human", "nobody.json"], "nobody.json does not exist"),
        (["v1.0", "--only", "pause"], "has clips of backchannel, turn only"),
        (["v1.0", "--model", "nano", "--system-prompt", "a", "--system-prompt-text", "b"], "not both"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    if arguments[:1] == ["v1.0"]:
        put(Path("v1.0") / "candor_turn_taking" / "1", turn(2.0))
        put(Path("v1.0") / "icc_backchannel" / "1")
    before = sorted(desk.rglob("*"))
    assert duplex(*arguments) == 2
    assert said in capsys.readouterr().err
    assert sorted(desk.rglob("*")) == before


def test_a_result_that_cannot_be_written_is_told_first(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert duplex(benchmark, "--json", tmp_path / "no" / "result.json") == 6
    assert "does not exist" in capsys.readouterr().err
