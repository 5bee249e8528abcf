"""What is written is executed: code, commands, names of tests, paths and the help page."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from personaplex.audio import read_audio, write_audio
from personaplex.cli.main import main
from tests.duplex.folders import hum, put, turn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STANDS_FOR = {
    "nvidia/personaplex-7b-v1": str(ROOT / "tests" / "fixtures" / "parity"),
    "NATF2": "VOICE0",
    "NATM1": "VOICE0",
    "--frames 20": "--frames 2",
    "--synthetic 20": "--synthetic 1 --only pause",
    "--out evaluation": "--out evaluation --only codec --size 1",
}
"""The docs speak of the real model; the tests run them with the tiny one, and measure for a moment only."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def stand_in(text: str) -> str:
    for real, tiny in STANDS_FOR.items():
        text = text.replace(real, tiny)
    return text


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the beginning of a question in it, and a clip of Full-Duplex-Bench's kind."""
    monkeypatch.chdir(tmp_path)
    # Random weights never fall silent: without a limit they would talk for 16 s each time.
    monkeypatch.setattr("personaplex.model.DEFAULT_MAX_STEPS", 8)
    write_audio(tmp_path / "question.wav", read_audio(ROOT / "examples" / "question.wav")[:36_000])
    put(tmp_path / "v1.0" / "candor_turn_taking" / "1", turn(2.0), user=hum(3))
    return tmp_path


WITH_PYTHON = [p for p in PAGES if blocks(p, "python")]
RUN_ELSEWHERE = {"verify.md", "prompts.md"}
"""tests/e2e/test_verify.py runs these: random weights fail a verification, as they should, and some commands need files
that the page shows."""
WITH_COMMANDS = [p for p in PAGES if "personaplex " in "".join(blocks(p, "sh")) and p.name not in RUN_ELSEWHERE]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: p.name)
def test_python_in_the_docs_runs(page: Path, desk: Path) -> None:
    """All blocks of a page are one program."""
    exec(compile(stand_in("\n".join(blocks(page, "python"))), str(page), "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda p: p.name)
def test_commands_in_the_docs_run(
    page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONAPLEX_MODEL", STANDS_FOR["nvidia/personaplex-7b-v1"])
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            if line.startswith("personaplex "):
                arguments = shlex.split(stand_in(line), comments=True)[1:]
                assert main(arguments) == 0, (line, capsys.readouterr().err)


def test_there_is_something_to_run() -> None:
    assert {p.name for p in WITH_PYTHON} >= {"README.md", "library.md"}
    assert {p.name for p in WITH_COMMANDS} >= {"README.md", "benchmarks.md"}


def test_the_help_page_is_the_programs_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSONAPLEX_MODEL", raising=False)
    script = runpy.run_path(str(ROOT / "scripts" / "write_cli_docs.py"))
    assert script["page"]() == (ROOT / "docs" / "cli.md").read_text(), "run python scripts/write_cli_docs.py"


def test_every_test_that_the_differences_name_exists() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "differences.md").read_text())
    assert len(named) > 21
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "THIRD_PARTY.md"], ids=lambda p: p.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:src|tests|docs|scripts|examples|engine|models|nn|checkpoint)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists() or (ROOT / "src" / "personaplex" / path).exists(), path


def test_make_targets_in_the_readme_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^make ([\w-]+)", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    assert named == ["demo", "test"] and set(named) <= set(targets)


def test_the_error_tree_in_the_docs_is_the_one_in_the_code() -> None:
    from personaplex import errors

    tree = re.search(r"(PersonaPlexError +1\n(?:.*\n)*?.*DeviceError.*)", errors.__doc__ or "")
    assert tree is not None
    lines = [line.removeprefix("    ") for line in tree.group(1).splitlines()]
    assert "\n".join(lines) in (ROOT / "docs" / "library.md").read_text()
    for name, code in re.findall(r"─ (\w+) +(\d+)", tree.group(1)):
        assert getattr(errors, name).exit_code == int(code)
