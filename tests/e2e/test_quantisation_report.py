"""`personaplex quantisation-report` from the command line: what it prints and writes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from personaplex.audio import write_audio
from personaplex.cli.main import main
from personaplex.quality.thresholds import Thresholds
from tests.conftest import PARITY
from tests.listening import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_audio(folder / "question.wav", np.random.default_rng(0).normal(0, 0.1, 9_000).astype(np.float32))
    return write_model(folder / "model", listens=True)


def report(model: Path, *arguments: object) -> int:
    audio = ["--audio", str(model.parent / "question.wav"), "--tail-seconds", "0"]
    return main(["quantisation-report", "--reference", str(model), *audio, *map(str, arguments)])


def test_what_was_converted_measures_as_what_is_made_in_memory(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "4"
    how = ["--bits", "4", "--group-size", "32", "--quantize", "temporal,depformer,heads,embeddings"]
    assert main(["convert", str(model), "--out", str(out), *how]) == 0
    capsys.readouterr()
    assert report(model, out, model, *how, "--kv-bits", "16,8", "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    rows = [(c["name"], c["kv_bits"]) for c in found["candidates"]]
    assert rows == [(str(out), 16), (str(out), 8), (str(model), 16), (str(model), 8), ("4", 16), ("4", 8)]
    converted, converted_8, itself, _, made, made_8 = found["candidates"]
    for key in ("streams", "drift", "bits_per_weight", "bytes", "kl_over_time", "verdict"):
        assert converted[key] == made[key] and converted_8[key] == made_8[key]
    assert converted["streams"]["text"]["kl"] > itself["streams"]["text"]["kl"] == 0
    assert converted["bits_per_weight"] == pytest.approx(5, abs=0.1) and found["frames"] == 5


def test_the_table_is_on_stdout_and_files_are_whole(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert report(model, "--bits", "16", "--out", out) == 0
    printed = capsys.readouterr()
    assert printed.out == (out / "quality.md").read_text() and printed.out.count("\n") == 3
    assert json.loads((out / "report.json").read_text())["reference"] == str(model)
    assert f"wrote {out / 'report.html'}" in printed.err
    assert report(model, "--bits", "16", "--out", out) == 0, "a report may be made anew"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to measure"),
        (["--bits", "4,5"], 2, "'4,5' is not some of 16,8,4,mixed"),
        (["--bits", "4,4"], 2, "each once"),
        (["--bits", "8", "--kv-bits", "4"], 2, "'4' is not some of 16,8"),
        (["--bits", "8", "--quantize", "mouth"], 2, "'mouth' is not some of temporal"),
        (["--bits", "8", "--group-size", "128"], 4, "groups of 128 do not divide"),
        (["--group-size", "32", "MODEL"], 2, "--group-size and --quantize say how --bits"),
        (["--bits", "8", "--seed", "-1"], 2, "seed is -1"),
        (["--bits", "8", "--audio", "none.wav"], 3, "none.wav"),
        (["--bits", "8", "--thresholds", "none.toml"], 4, "none.toml holds no thresholds"),
        (["nowhere/at/all"], 4, "nowhere/at/all"),
        ([str(PARITY)], 2, "built otherwise"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    model: Path, arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(model, *(str(model) if a == "MODEL" else a for a in arguments)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("personaplex: ")]
    assert len(lines) == 1 and says in lines[0]


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert report(model, "--bits", "16", "--out", tmp_path / "file") == 6
    assert report(model, "--bits", "16", "--out", tmp_path / "file" / "below") == 6
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and "loading" not in said


def test_the_search_for_a_mixture_measures_everything_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`scripts/mixed_search.py`, and groups that do not fit are halved."""
    short = dataclasses.replace(Thresholds.read(), tail_seconds=0.0)
    monkeypatch.setattr(Thresholds, "read", lambda: short)
    audio = str(model.parent / "question.wav")
    monkeypatch.setattr("sys.argv", ["mixed_search.py", str(model), "--audio", audio])
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "mixed_search.py"))
    assert script["main"]() == 0
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    by_name = {row[1]: row for row in rows[2:]}
    bits = {name: float(row[2]) for name, row in by_name.items()}
    assert bits["16"] == 16 and bits["all 4, groups of 32"] == pytest.approx(5, abs=0.1)
    assert bits["all 4, groups of 64"] < bits["all 4, groups of 32"] and bits["all 4, groups of 128"] < 4.6
    alone = [name for name in bits if name.startswith("only ")]
    assert len(alone) == 4 + 8 + 1 + 3 and all(bits["all 4, groups of 32"] < bits[name] < 16 for name in alone)
    assert all(by_name[name][11] != "0" for name in alone), "each changes what is said"
    for part in ("temporal", "depformer", "heads", "embeddings"):
        assert 4.9 < bits[f"all 4 but {part} 8"] < bits[f"all 4 but {part} 16"]
