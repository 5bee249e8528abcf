"""`personaplex report` from a model or from what was recorded with one: the same command gives the same report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personaplex.audio import write_audio
from personaplex.cli.main import main
from personaplex.evaluate.result import Result
from personaplex.evaluate.row import share
from tests.conftest import PARITY

TINY = ["--model", str(PARITY), "--voice", "VOICE0"]


@pytest.fixture
def desk(tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with half a second of a question."""
    (tmp_path / "asked").mkdir()
    write_audio(tmp_path / "asked" / "question.wav", speech[:12_000])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    return tmp_path


def without_times(path: Path) -> Any:
    """A report's JSON without what a machine's load decides, and where it was measured."""
    entry = json.loads(path.read_text())
    entry["rows"] = [row for row in entry["rows"] if row["what"] not in ("step time", "steps over 80 ms")]
    for item in entry["items"]:
        item["steps"].pop("ms")
        item["about"].pop("prefill_ms")
        for name in ("step time", "steps over 80 ms"):
            item["values"].pop(name)
    return entry


def test_a_model_and_a_seed_make_the_same_report_again(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["report", *TINY, "--audio", "asked", "--max-steps", "4"]
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert main([*asked, "--seed", seed, "-o", f"{name}.html"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("| text entropy |") == 3 and "answered asked/question.wav" in printed.err
    first, again, other = (without_times(desk / f"{name}.json") for name in "abc")
    assert first == again and first["items"][0]["text"] != other["items"][0]["text"]
    (item,) = first["items"]
    n = len(item["steps"]["at"])
    assert n == round(item["seconds"] / 0.08) and item["about"]["seed"] == 5
    assert all(0 < value <= np.log(320) + 1e-3 for value in item["steps"]["text"])
    assert Result.load(desk / "a.json").about["model"] == str(PARITY)

    def drawn(name: str) -> str:
        """The page without step times: bars, their chart, and what they come to."""
        page = (desk / f"{name}.html").read_text()
        page = re.sub(r'<rect class="(?:step|late)".*?</rect>|<figure><figcaption><h3>Step times.*?</figure>', "", page)
        return re.sub(
            r"[\d.]+ ms|step time.*?</tr>|steps over 80 ms.*?</tr>|prefill ms.*?</dd>|<path class=\"limit\".*?/>",
            "",
            page,
        )

    assert drawn("a") == drawn("b") != drawn("c")


def test_a_broken_recording_beside_a_good_one(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "asked" / "broken.wav").write_bytes(b"RIFF")
    Result("codec", {}, [share("kept", [True])]).save(desk / "codec.json")
    assert main(["report", "codec.json", *TINY, "--audio", "asked", "--max-steps", "1", "-o", "a.html"]) == 0
    assert "left out: asked/broken.wav" in capsys.readouterr().err
    result = Result.load(desk / "a.json")
    assert len(result.failures) == 1 and result.about["conversations"] == 1
    assert {"text entropy", "codec: kept"} <= {row.what for row in result.rows}
    (desk / "asked" / "question.wav").unlink()
    assert main(["report", *TINY, "--audio", "asked", "-o", "b.html"]) == 3
    assert not (desk / "b.html").exists()
    assert main(["report", "codec.json", *TINY, "--audio", "asked", "-o", "c.html"]) == 0, "something could be read"
    assert [row.what for row in Result.load(desk / "c.json").rows] == ["codec: kept"]


def test_folders_are_looked_through_as_by_the_evaluations(desk: Path) -> None:
    (desk / "asked" / "more").mkdir()
    (desk / "asked" / "question.wav").rename(desk / "asked" / "more" / "question.WAV")
    assert main(["report", *TINY, "--audio", "asked", "--max-steps", "1", "-q", "-o", "a.html"]) == 0
    assert [item["item"] for item in Result.load(desk / "a.json").items] == ["question"]


def test_a_broken_source_does_not_keep_a_model_from_answering(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "broken.json").write_text("{")
    (desk / "empty").mkdir()
    asked = ["broken.json", "empty", *TINY, "--audio", "asked", "--max-steps", "1", "-o", "a.html"]
    assert main(["report", *asked]) == 0
    told = capsys.readouterr().err
    assert "left out: broken.json" in told and "left out: the folder empty holds nothing" in told
    result = Result.load(desk / "a.json")
    assert [item["item"] for item in result.items] == ["question"]
    assert [failure.item for failure in result.failures] == ["empty", "broken.json"]
    assert main(["report", "broken.json", "-o", "b.html"]) == 2 and not (desk / "b.html").exists()


def test_what_is_said_in_one_recording_is_not_replaced_by_anothers(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.dumps({"left": "agent", "events": []})
    for name in ("call.wav", "question.m4a"):
        (desk / name).write_bytes((desk / "asked" / "question.wav").read_bytes())
    (desk / "call.json").write_text(said)
    (desk / "result.json").write_text(said)
    for command in ("respond", "talk"):
        for source, record in (
            ("call.wav", "call.flac"),
            ("asked/question.wav", "call.flac"),
            ("question.m4a", "question.flac"),
            ("call.wav", "result.wav"),
            ("call.wav", "out.flac"),
        ):
            assert main([command, "-i", source, "-o", "out.wav", "--record", record, *TINY]) == 2, (
                command,
                source,
                record,
            )
            told = capsys.readouterr().err
            assert "choose another name for --record" in told and record.split(".")[0] + ".json" in told
    assert (desk / "call.json").read_text() == (desk / "result.json").read_text() == said


def test_talk_and_respond_record_what_a_report_shows(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed, voice and sound: respond's two recordings, and talk's, hold the same steps."""
    source = ["-i", "asked/question.wav", "--seed", "3", *TINY]
    (desk / "made").mkdir()
    assert (
        main(["respond", *source, "-o", "made/a.wav", "--record", "made/both.wav", "--json", "--max-steps", "4"]) == 0
    )
    (desk / "made" / "a.json").write_text(capsys.readouterr().out)
    assert main(["talk", *source, "--record", "made/call.wav", "--max-seconds", "0.5", "-q"]) == 0
    assert main(["report", "made", "-q", "-o", "out.html"]) == 0
    items = {item["item"]: item for item in Result.load(desk / "out.json").items}
    assert {item["source"] for item in items.values()} == {"respond --json", "respond --record", "talk --record"}
    assert items["a"]["steps"] == items["both"]["steps"] and items["a"]["text"] == items["both"]["text"]
    n = len(items["a"]["steps"]["at"])
    talked = items["call"]["steps"]
    assert talked["text"][:n] == pytest.approx(items["a"]["steps"]["text"], abs=2e-3)
    assert talked["acoustic"][:n] == pytest.approx(items["a"]["steps"]["acoustic"], abs=2e-3)
    assert talked["at"][0] == pytest.approx(0.24, abs=0.01), "three frames wait before the first is heard"
    assert all(item["lacks"] == ["what the user said: nothing of it was transcribed"] for item in items.values())
