"""Uploading: refused in one line, and before the work, by a Hub that is a few lines of this file."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from personaplex.checkpoint import upload
from personaplex.checkpoint.card import Quality
from personaplex.cli import convert as cli
from personaplex.cli.main import main
from tests.conftest import PARITY

ME = {"type": "user", "name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}}}


class Hub:
    """What the stand-in answers to who one is, and to making a repository; `asked` is what it was asked for."""

    def __init__(self) -> None:
        self.whoami: tuple[int, dict[str, Any]] = (200, ME)
        self.create: tuple[int, dict[str, Any]] = (403, {"error": "no"})
        self.asked: list[str] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            state.asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, body = state.whoami if "whoami" in self.path else state.create
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def run(out: Path, repo: str, *more: str) -> int:
    return main(["convert", str(PARITY), "--out", str(out), "--bits", "16", "--upload", repo, *more])


READER = ME | {"auth": {"accessToken": {"role": "read"}}}


@pytest.mark.parametrize(
    ("answer", "repo", "says"),
    [
        ((401, {"error": "x"}), "me/x", "me/x cannot be written: the Hub refused your token (401)"),
        ((403, {"error": "x"}), "me/x", "me/x cannot be written: the Hub refused your token (403)"),
        ((500, {"error": "x"}), "me/x", "me/x cannot be written: "),
        ((200, READER), "us/x", "your token may only read"),
        ((200, ME), "them/x", "you are me on the Hub, and no member of them"),
        ((200, ME), "x", "x is no repository on the Hub: owner/name is"),
    ],
)
def test_no_permission_is_one_line_before_the_work(
    hub: Hub, tmp_path: Path, answer: tuple[int, dict[str, Any]], repo: str, says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub.whoami = answer
    assert run(tmp_path / "out", repo) in (2, 6)
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_hub_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    assert run(tmp_path / "out", "me/x") == 6
    said = capsys.readouterr().err
    assert "me/x cannot be written: the Hub cannot be reached" in said and said.count("\n") == 1


def test_what_was_not_measured_is_not_uploaded(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(out, "us/x", "--no-measure") == 6
    says = f"{out} is whole, and was not uploaded: its quality was not measured; `hf upload us/x {out}` uploads it"
    assert says in capsys.readouterr().err, "the same command with --force would find the folder in its way"
    assert (out / "model.safetensors").is_file() and all("create" not in path for path in hub.asked)


@pytest.mark.parametrize(("quality", "more"), [(Quality(), []), (Quality(refusals=("it is bad",)), ["--force"])])
def test_what_is_good_or_forced_is_uploaded(
    hub: Hub, tmp_path: Path, quality: Quality, more: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As far as the stand-in goes: it is asked to make the repository, and says no; the folder stays."""
    monkeypatch.setattr(cli, "_measure", lambda *_: quality)
    assert run(tmp_path / "out", "us/x", *more) == 6
    said = capsys.readouterr().err
    assert "us/x cannot be written: the Hub refused your token (403)" in said
    assert f"`hf upload us/x {tmp_path / 'out'}` tries again" in said
    assert "/api/repos/create" in hub.asked and (tmp_path / "out" / "config.json").is_file()


def test_a_folder_goes_up_whole(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    sent: dict[str, object] = {}
    hub.create = (200, {"url": f"{constants.ENDPOINT}/us/x"})
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **about: sent.update(about))
    assert upload.upload(tmp_path, "us/x").endswith("/us/x")
    assert sent["repo_id"] == "us/x" and sent["folder_path"] == tmp_path


def test_random_weights_are_recognised_and_not_uploaded(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the program measures it: the tiny reference model is no trained one."""
    out = tmp_path / "out"
    assert run(out, "us/x") == 6
    said = capsys.readouterr().err
    assert (
        f"{out} is whole, and was not uploaded: {PARITY} answers as random weights do" in said and said.count("\n") == 2
    )
    assert "| 16 | 16.00 |" in (out / "README.md").read_text() and all("create" not in path for path in hub.asked)
