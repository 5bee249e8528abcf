"""`bench serve` calls a real server: one that it starts, and one that runs and has too few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from personaplex.cli.main import main
from personaplex.server.service import Service
from tests.conftest import PARITY
from tests.server.conftest import scripted_backends, serving, settings

TOKEN = "a-good-long-token"
FRAMES = 12


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[int, dict[str, float]]]:
    """Rows of the last line printed, by name and number of callers."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]:
        found.setdefault(row["name"], {})[row["callers"]] = row
    return found


def test_a_server_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "sweep.svg"
    arguments = ["--model", PARITY, "--callers", "1,2", "--frames", FRAMES, "--plot", plot]
    assert main(["bench", "serve", *map(str, arguments)]) == 0
    rows = report(capsys)
    for n in (1, 2):
        tick = rows["tick"][n]
        assert tick["n"] + tick["shed"] + tick["deficit"] == n * FRAMES and tick["n"] > 0 and tick["refused"] == 0
        assert 0 < tick["p50_ms"] <= tick["p99_ms"] <= tick["max_ms"]
        assert rows["first audio"][n]["n"] == rows["ready"][n]["n"] == n
    assert "polyline" in plot.read_text() and ElementTree.parse(plot)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(Service.of(scripted_backends(2), settings(token=TOKEN))) as address:
        yield address


def test_callers_who_find_no_line_are_counted(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", address, "--token", TOKEN, "--callers", "3", "--frames", str(FRAMES), "--json"]
    assert main(["bench", "serve", *arguments]) == 0
    rows = report(capsys)
    assert rows["tick"][3]["refused"] == rows["refused"][3]["n"] == 1
    assert rows["tick"][3]["n"] == 2 * FRAMES and rows["tick"][3]["missed"] >= round(1 / 3, 4)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--url"),
        (["--url", "http://127.0.0.1:9", "--model", "x"], 2, "--model"),
        (["--url", "http://127.0.0.1:9", "--callers", "0"], 2, "--callers"),
        (["--url", "http://127.0.0.1:9"], 12, "does not take calls"),
        (["--url", "http://127.0.0.1:9", "--plot", "/nowhere/x.svg"], 6, "/nowhere"),
        (["--model", "/nowhere"], 12, "/nowhere"),
    ],
)
def test_what_cannot_be(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_wrong_token(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--url", address, "--token", "wrong", "--callers", "1"]) == 12
    assert "401" in capsys.readouterr().err


def test_its_options_are_for_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", "--callers", "2"]) == 2
    assert "--callers is for `bench serve`" in capsys.readouterr().err
