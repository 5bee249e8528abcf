"""`personaplex info`: what it says of a model is what is in its files, and nothing is downloaded for it."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import constants

from personaplex.checkpoint import repository
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.checkpoint.sources import SOURCES
from personaplex.checkpoint.store import write_int8
from personaplex.cli.main import main
from personaplex.errors import CheckpointError
from personaplex.nn.state import parameters
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import plan
from personaplex.summary import summarise
from tests.conftest import FIXTURES, PARITY, edit_config
from tests.hub_server import Repo, ask, running
from tests.unit.test_checkpoint import moshi_folder, stored

MIMI = FIXTURES / "transformers-mimi"


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it asked the network"))


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["info", *arguments]) == 0
    return capsys.readouterr().out


def test_a_model_is_described_by_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads(told(capsys, str(PARITY), "--sessions", "3", "--json"))
    file = stored(PARITY / "model.safetensors")
    folder = ModelFolder(PARITY)
    assert about["parameters"]["stored"] == sum(array.size for array in file.values())
    assert about["parameters"]["live"] == sum(array.size for array in parameters(folder.load_lm(8)).values())
    assert sum(part["parameters"] for part in about["parts"]) == about["parameters"]["stored"]
    assert {part["part"]: part["bits"] for part in about["parts"]} == dict.fromkeys(
        ("temporal", "depformer", "heads", "embeddings", "norms"), 16
    )
    assert about["files"]["model.safetensors"] == (PARITY / "model.safetensors").stat().st_size
    assert about["architecture"]["kind"] == "personaplex" and about["architecture"]["voices"] == ["VOICE0"]
    assert about["architecture"]["depformer"]["steps_stored"] == 16
    assert [row["sessions"] for row in about["memory"]] == [1, 2, 3]
    assert about["memory"][1]["n_bytes"] == plan(folder, 2, Limits()).total


def test_the_room_is_the_largest_number_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, limits = ModelFolder(PARITY), Limits()
    monkeypatch.setattr("personaplex.summary.available_bytes", lambda: plan(folder, 5, limits).total + 1)
    found = summarise(str(PARITY), 7)
    assert found.most_sessions == 5 and [row.fits for row in found.memory] == [True] * 5 + [False] * 2
    monkeypatch.setattr("personaplex.summary.available_bytes", lambda: 10)
    assert summarise(str(PARITY), 1).most_sessions == 0
    monkeypatch.setattr("personaplex.summary.available_bytes", lambda: None)
    assert summarise(str(PARITY), 1).memory[0].fits is None


def test_bits_are_those_in_the_file(tiny_folder: Path) -> None:
    """Stored as int8 with a scale per row: a bit more than 8 for matrices, the scales of short rows weigh."""
    write_int8(tiny_folder / "model.safetensors", stored(PARITY / "model.safetensors"))
    bits = {part.part: part.bits for part in summarise(str(tiny_folder), 1).parts}
    assert bits["norms"] == 32 and 8 < bits["temporal"] < 10.5
    file = ModelFolder(tiny_folder).open_lm()
    rows = file.entries["text_linear.weight"].shape[0] + sum(
        file.entries[f"linears.{i}.weight"].shape[0] for i in range(16)
    )
    values = next(part.parameters for part in summarise(str(tiny_folder), 1).parts if part.part == "heads")
    assert bits["heads"] == pytest.approx(8 + 32 * rows / values, abs=1e-3)


def test_people_read_it_too(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    moshi_folder(tiny_folder)
    edit_config(tiny_folder, prompts=False)
    text = told(capsys, str(tiny_folder), "--sessions", "1")
    assert "kind          Moshi\n" in text and "prompts       none\n" in text
    assert "GiB for 1 session\n" in text and "steps stored 8, steps used 8" in text


def test_a_codec_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(MIMI / name, tmp_path / name)
    about = json.loads(told(capsys, str(tmp_path), "--json"))
    assert about["architecture"] == {"kind": "mimi", "codec": {"codebooks": 11, "used": 8, "bins": 64}}
    assert about["parameters"]["codec"] == sum(array.size for array in stored(MIMI / "model.safetensors").values())
    assert about["parts"] == about["memory"] == []
    other = tmp_path / "moshi's layout"
    other.mkdir()
    for path in (PARITY / "config.json", next(PARITY.glob("tokenizer-*.safetensors"))):
        shutil.copy(path, other)
    assert json.loads(told(capsys, str(other), "--json"))["architecture"]["kind"] == "mimi"


def test_a_known_repository_that_is_not_here_is_described_and_not_downloaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = told(capsys, "nvidia/personaplex-7b-v1")
    assert "not on this machine" in text and "16,742,874,000 model.safetensors" in text
    assert "NVIDIA Open Model License" in text and "gated" in text
    for repo, source in SOURCES.items():
        assert json.loads(told(capsys, repo, "--json"))["licence"]["name"] == source.licence.name
    assert main(["info", "nvidia/personaplex-7b-v1", "--verify"]) == 4
    assert "nothing to verify" in capsys.readouterr().err
    assert main(["info", "nobody/nothing"]) == 4
    assert "nobody/nothing is not on this machine, and not one of nvidia/" in capsys.readouterr().err


def test_what_was_downloaded_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {str(p.relative_to(PARITY)): p.read_bytes() for p in PARITY.rglob("*") if p.is_file()}
    card = b"---\nlicense: other\nlicense_name: a-licence\nlicense_link: https://example.org/x\n---\n# A model\n"
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(repository, "getproxies", dict)
    with running({"some/body": Repo(files | {"README.md": card})}) as served:
        ask(monkeypatch, served.url)
        folder = resolve("some/body")
    about = json.loads(told(capsys, "some/body", "--json"))
    assert about["folder"] == str(folder) and about["parameters"]["live"] > 0
    assert about["licence"] == {"name": "a-licence", "url": "https://example.org/x", "hub": "unknown"}


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nbase_model: nvidia/personaplex-7b-v1\nlicense: other\n---\n", "NVIDIA Open Model License"),
        ("---\nlicense: mit\n---\n", "mit"),
        ("# no front matter\n", "not stated"),
    ],
)
def test_the_licence_is_what_the_model_card_says(tiny_folder: Path, card: str, name: str) -> None:
    (tiny_folder / "README.md").write_text(card)
    assert summarise(str(tiny_folder), 1).licence.name.startswith(name)


def test_what_is_damaged_is_one_line(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = stored(tiny_folder / "model.safetensors")
    for damaged, says in (
        (tensors | {"extra": mx.zeros(1)}, "unknown tensor 'extra'"),
        ({name: array for name, array in tensors.items() if name != "out_norm.alpha"}, "'out_norm.alpha'"),
    ):
        mx.save_safetensors(str(tiny_folder / "model.safetensors"), damaged)
        with pytest.raises(CheckpointError, match=says):
            summarise(str(tiny_folder), 1)
    assert main(["info", str(tiny_folder / "nowhere")]) == 4
    assert main(["info", str(tiny_folder / "config.json")]) == 4
    assert main(["info", str(tiny_folder), "--sessions", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err
