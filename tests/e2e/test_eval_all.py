"""Every evaluation by one command: results kept one by one, a page of all, tables in the card."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from personaplex.audio import write_audio
from personaplex.cli.eval_all import PARTS
from personaplex.cli.main import main
from personaplex.errors import VerificationError
from personaplex.evaluate.result import Result
from personaplex.evaluate.row import as_markdown

MODEL = str(Path(__file__).parents[1] / "fixtures" / "parity")
CARD = "# Card\n\n<!-- report -->\n<!-- /report -->\n\nThe end.\n"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random weights never fall silent: without a limit they would talk for 16 s each time. And a little of all."""
    monkeypatch.setattr("personaplex.model.DEFAULT_MAX_STEPS", 8)
    one = ["--ask", "what is the capital of france", "--expect", "paris", "--listen", "2", "--no-wait"]
    monkeypatch.setitem(PARTS, "verify", PARTS["verify"]._replace(arguments=lambda _: one))
    monkeypatch.setitem(PARTS, "codec", PARTS["codec"]._replace(arguments=lambda _: ["--sentences", "2", "--no-opus"]))
    monkeypatch.chdir(tmp_path)


def test_results_page_and_card_of_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card.md"
    card.write_text(CARD)
    assert main(["eval", "all", "--model", MODEL, "--only", "codec", "--size", "1", "--card", str(card)]) == 0
    result = Result.load(tmp_path / "evaluation" / "codec.json")
    assert result.kind == "codec" and len(result.rows) > 10
    assert f"\n### codec\n\n{as_markdown(result.rows)}\n" in card.read_text()
    assert card.read_text().endswith("<!-- /report -->\n\nThe end.\n")
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert result.rows[0].what in page and "<svg" in page
    assert json.loads((tmp_path / "evaluation" / "report.json").read_text())["kind"] == "report"
    assert capsys.readouterr().out.startswith("## codec\n")


def test_a_model_that_fails_has_its_page_and_the_exit_code_of_the_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights do not pass a verification; the codec after it is measured all the same."""
    options = ["--model", MODEL, "--only", "verify,codec", "--size", "1", "--out", str(tmp_path / "e")]
    assert main(["eval", "all", *options]) == VerificationError.exit_code
    assert "verify: " in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "e").iterdir()} == {
        "verify", "verify.json", "codec.json", "report.html", "report.json",
    }  # fmt: skip
    shown = [item for item in Result.load(tmp_path / "e" / "report.json").items if item.get("type") == "conversation"]
    assert [one["source"] for one in shown] == ["verify --keep"], "no question of nobody's beside it"
    assert shown[0]["about"]["question"] == "what is the capital of france"


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_who_interrupts_is_told_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("personaplex.cli.eval_voices.command.callback", interrupt)
    assert main(["eval", "all", "--model", MODEL, "--only", "codec,voices", "--size", "1", "-q"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("personaplex: interrupted; evaluation holds codec.json so far")
    assert "no file was written" not in last
    command = last.split("`")[1].split()[1:]
    assert main(command) == 0 and (tmp_path / "evaluation" / "report.html").is_file(), "what is told works"
    monkeypatch.setattr("personaplex.cli.eval_codec.command.callback", interrupt)
    assert main(["eval", "all", "--model", MODEL, "--only", "codec", "--out", "new"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("interrupted; no result was written into new")


def test_recordings_given_are_answered_on_the_page(tmp_path: Path) -> None:
    write_audio(tmp_path / "mine.wav", np.zeros(12_000, np.float32))
    options = ["--only", "codec", "--size", "1", "--audio", "mine.wav", "-q"]
    assert main(["eval", "all", "--model", MODEL, *options]) == 0
    items = Result.load(tmp_path / "evaluation" / "report.json").items
    assert [item["item"] for item in items if item.get("type") == "conversation"] == ["mine"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--audio", "none.wav"], 3, "none.wav does not exist"),
        (["--audio", "broken.wav"], 3, "broken.wav"),
        (["--out", "file"], 6, "--out file: that, or a part of it, is a file; name a folder"),
        (["--out", "file/deeper"], 6, "is a file; name a folder"),
        (["--out", "taken"], 6, "codec.json is a folder; name a file"),
    ],
)
def test_places_and_recordings_are_looked_at_before_anything_is_begun(
    options: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("personaplex.cli.eval_codec.command.callback", lambda **_: pytest.fail("begun"))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "codec.json").mkdir(parents=True)
    assert main(["eval", "all", "--model", MODEL, "--only", "codec", *options]) == code
    err = capsys.readouterr().err
    assert said in err and "Errno" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "codecs"], "there is no evaluation 'codecs'"),
        (["--card", "none.md"], "is no file"),
        (["--card", "plain.md"], "<!-- report -->"),
        (["--card", "binary.md"], "is no file that can be read as text"),
        (["--model", "nowhere/at-all", "--only", "held-out"], "nothing"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_begun(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.md").write_text("# Card\n")
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe")
    assert main(["eval", "all", "--model", MODEL, "--out", str(tmp_path / "e"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("name", ["all", *(part.module.removeprefix("eval_") for part in PARTS.values())])
def test_every_evaluation_has_the_same_options(name: str) -> None:
    """Shared ones, with one default; --recogniser can be set for all of them."""
    module = name if name == "verify" else f"eval_{name}"
    options = {option.name: option for option in import_module(f"personaplex.cli.{module}").command.params}
    assert options["seed"].default == 0 and "-q" in options["quiet"].opts
    assert name == "all" or "--json" in options["json_file"].opts
    assert "slots" not in options or options["slots"].default == 4
    assert "recogniser" not in options or options["recogniser"].envvar == "PERSONAPLEX_RECOGNISER"
    assert ("slots" in options) == ("recogniser" in options) == (name in ("verify", "prompts", "duplex"))


def test_what_is_quiet_says_only_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "all", "--model", MODEL, "--only", "codec", "--size", "1", "-q"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("## codec\n")
    assert all(line.startswith("warning: the control") for line in said.err.splitlines()), "or the numbers deceive"
