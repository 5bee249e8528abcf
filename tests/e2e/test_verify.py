"""verify and eval prompts from end to end: the documented commands, nano, and what is broken among what is not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from personaplex.audio import read_audio, write_audio
from personaplex.cli.main import main
from personaplex.evaluate.prompts.questions import read_questions
from personaplex.evaluate.prompts.spoken import Speakers
from personaplex.evaluate.result import Result
from tests.conftest import PARITY, edit_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "evaluation"
VERIFIED, FAILED = 0, 13


def block(page: str, language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording and the documented questions. Each is half a second long, and so is its answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONAPLEX_MODEL", str(PARITY))
    monkeypatch.setattr("personaplex.evaluate.prompts.asking.LONGEST_GREETING", 2)
    monkeypatch.setattr("personaplex.evaluate.prompts.questions.LISTEN_SECONDS", 0.4)
    say = Speakers._say
    monkeypatch.setattr(Speakers, "_say", lambda *arguments: say(*arguments)[:9_600])
    write_audio(tmp_path / "question.wav", read_audio(ROOT / "examples" / "question.wav")[:9_600])
    text = re.sub("listen: 10", "listen: 0.4", block("prompts.md", "yaml"))
    (tmp_path / "questions.yaml").write_text(re.sub("NAT.[0-9]", "VOICE0", text))
    return tmp_path


def with_tiny_model(line: str) -> list[str]:
    for real, tiny in {"--model nano": "", "NATF2": "VOICE0"}.items():
        line = line.replace(real, tiny)
    return shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", ["verify.md", "prompts.md"])
def test_documented_commands_run(page: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model fails verify, but as a model that was measured."""
    lines = [line for line in block(page, "sh").splitlines() if line.startswith("personaplex ")]
    assert len(lines) == 3
    for line in lines:
        arguments = with_tiny_model(line)
        code = main([*arguments, "-q"])
        out, err = capsys.readouterr()
        assert code == (FAILED if page == "verify.md" else 0), (line, err)
        assert out.startswith("| what | goal | measured")
    written = desk / ("verified.json" if page == "verify.md" else "answers.json")
    assert Result.load(written).items


def test_the_documented_python_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.model.DEFAULT_MAX_STEPS", 8)
    program = block("verify.md", "python").replace("nvidia/personaplex-7b-v1", str(PARITY))
    exec(compile(program, "verify.md", "exec"), {"__name__": "docs"})


def test_the_documented_questions_are_what_the_page_says(desk: Path) -> None:
    opening, who, recorded = read_questions(desk / "questions.yaml")
    assert opening.name == "opening time" and opening.seeds == (1, 2, 3) and opening.expectation.no_other_number
    assert who.expectation.wanted == (("anna",), ("bakery", "blue door")) and who.seeds == (7, 11)
    assert who.expectation.never == ("sorry", "do not know")
    assert recorded.audio is not None and not recorded.waits and recorded.expectation.wanted == (("nine", "9 o'clock"),)


@pytest.mark.parametrize("page", ["verify.md", "prompts.md"])
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", (DOCS / page).read_text())
    assert targets
    for target, place in targets:
        file = DOCS / (target or page)
        headings = re.findall("^#+ (.*)$", file.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not place or place in anchors, (target, place)


BROKEN = """
listen: 0.4
waits: false
questions:
  - {audio: question.wav, expect: hello}
  - {audio: broken.wav, expect: hello}
  - {audio: none.wav, expect: hello}
"""


def test_a_broken_recording_among_others_is_told_and_counted(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "broken.wav").write_bytes(b"RIFF")
    (desk / "mixed.yaml").write_text(BROKEN)
    assert main(["eval", "prompts", "mixed.yaml", "--seeds", "2", "--json", "r.json"]) == 0
    out, err = capsys.readouterr()
    assert "| answer right |  | 0.000 | 0.000 to 0.390 | 6 |" in out
    assert err.count("not measured: broken.wav (seed ") == 2 and "none.wav does not exist" in err
    result = Result.load(desk / "r.json")
    assert len(result.items) == 2 and len(result.failures) == 4
    assert {row.what: row.n for row in result.rows}["nothing is said"] == 2


def test_recordings_that_are_all_broken_end_with_the_first_ones_code(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "mixed.yaml").write_text(BROKEN.replace("audio: question.wav", "audio: other.wav"))
    assert main(["eval", "prompts", "mixed.yaml", "--json", "r.json"]) == 3
    assert "other.wav does not exist" in capsys.readouterr().err
    assert len(Result.load(desk / "r.json").failures) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mixed.yaml"], 2, "mixed.yaml does not exist"),
        (["baisc"], 2, "unknown questions 'baisc'"),
        (["basic", "--size", "3"], 2, "--size is for nano's own test"),
        (["basic", "--tests", "pause"], 2, "--tests is for nano's own test"),
        (["basic", "--recogniser", "nobody"], 2, "unknown recogniser 'nobody'"),
        (["basic", "--json", "nowhere/r.json"], 6, "nowhere"),
        (["basic", "--text-temp", "-1"], 2, "text temperature"),
        (["nano", "--seeds", "3"], 2, "--seeds is for questions of your own"),
        (["nano", "--recogniser", "pocketsphinx"], 2, "heard by its own grammar"),
        (["nano", "--greedy"], 2, "leave these out"),
        (["nano", "--tests", "long,all"], 2, "is not some of"),
        ([], 2, "Missing argument"),
    ],
)
def test_wrong_usage(
    arguments: list[str], code: int, message: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "prompts", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_recogniser_that_is_set_for_all_is_not_nanos_own_tests(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[bool] = []

    def evaluate(*_: object, listens: bool, **__: object) -> Result:
        heard.append(listens)
        return Result("prompts", {}, [])

    monkeypatch.setenv("PERSONAPLEX_RECOGNISER", "nobody")
    monkeypatch.setattr("personaplex.evaluate.prompts.heldout.evaluate", evaluate)
    assert main(["eval", "prompts", "nano", "-q"]) == 0
    assert main(["eval", "prompts", "nano", "-q", "--recogniser", "grammar"]) == 0
    assert heard == [False, True]
    for command in (["eval", "prompts", "basic"], ["verify"]):
        assert main([*command, "-q"]) == 2
        assert "unknown recogniser 'nobody'" in capsys.readouterr().err


def test_a_voice_that_the_model_does_not_have_is_named_with_its_line(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "v.yaml").write_text("questions:\n- {say: hi, expect: x, voice: NATF9}\n")
    assert main(["eval", "prompts", "v.yaml"]) == 5
    assert "v.yaml:2: questions[0]: unknown voice 'NATF9'; this model has VOICE0" in capsys.readouterr().err


def test_a_model_that_takes_no_roles_talks_as_itself(
    desk: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(tiny_folder, prompts=False)
    (desk / "v.yaml").write_text("questions:\n- {say: hi, expect: x, voice: NATF9, prompt: You are x., waits: no}\n")
    assert main(["eval", "prompts", "v.yaml", "--model", str(tiny_folder), "--json", "r.json"]) == 0
    assert "talks as itself" in capsys.readouterr().err
    assert len(Result.load(desk / "r.json").items) == 1
    ask = ["--ask", "hi", "--expect", "x", "--no-wait", "--listen", "0.4", "--voice", "NATF9"]
    assert main(["verify", "--model", str(tiny_folder), *ask, "--json", "v.json", "-q"]) == FAILED
    rows = {row.what.split(":")[0]: row for row in Result.load(desk / "v.json").rows}
    assert rows["agrees"].value == 1


def test_the_same_seed_gives_the_same_table(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables, said = [], []
    for slots in ("1", "3"):
        how = ["--seed", "4", "--seeds", "1", "--slots", slots, "--json", "r.json", "-q"]
        assert main(["eval", "prompts", "basic", *how]) == 0
        tables.append(capsys.readouterr().out)
        said.append([item["said"] for item in Result.load(desk / "r.json").items])
    assert tables[0] == tables[1] and said[0] == said[1], "whatever ran beside it"
    assert len(set(said[0])) == 4


def test_the_groups_of_evaluations_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    assert "prompts" in capsys.readouterr().out
    assert main(["eval", "nothing"]) == 2


# nano: no answer of it is pinned, for its weights will change.


def test_nano_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.json"
    question = ["--ask", "What is the capital of France?", "--expect", "Paris", "--no-wait", "--listen", "1"]
    # A recogniser of free speech: nano's grammar thinks for long about what a broken model says.
    question += ["--recogniser", "pocketsphinx"]
    code = main(["verify", "--model", "nano", *question, "--json", str(path), "-q"])
    assert code in (VERIFIED, FAILED), capsys.readouterr().err
    result = Result.load(path)
    rows = {row.what.split(":")[0]: row for row in result.rows}
    assert rows["agrees"].value == 1, "whatever it says, it says the same through the library"
    assert code == (FAILED if any(row.met is False for row in result.rows) else VERIFIED)
    broken = next(item for item in result.items if item.get("control") == "broken model")
    assert broken["must_fail"] == ["words", "heard", "errors", "agrees"] and not set(broken["must_fail"]) & set(
        broken["passed"]
    )


def test_nanos_own_test_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h.json"
    arguments = ["--model", "nano", "--size", "1", "--tests", "trained", "--recogniser", "grammar"]
    assert main(["eval", "prompts", "nano", *arguments, "--json", str(path), "-q"]) == 0
    result = Result.load(path)
    assert result.about["size"] == 1 and result.about["tests"] == ["trained"]
    assert [item["group"] for item in result.items] == ["fact", "other"]
    assert all(item["test"] == "trained" and item["asked"] and item["heard"] is not None for item in result.items)
    row = next(row for row in result.rows if row.what == "trained phrasing, trained voices: answer right")
    assert row.n == 2 and row.value == sum(item["right"] for item in result.items) / 2
