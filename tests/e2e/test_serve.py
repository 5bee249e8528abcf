"""`personaplex serve` as a process: it listens before its model is loaded, drains on SIGTERM, and fails in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personaplex.cli.main import main
from tests.conftest import PARITY
from tests.server.moshi.caller import calling

SOUND = np.random.default_rng(0).normal(0, 0.1, 4 * 1920).astype(np.float32)


class Process:
    """A server. `log` are the lines of its log so far, as objects."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert process.stdout is not None
        found = re.fullmatch(r"listening on (https?://\S+)\n", process.stdout.readline())
        self.address = found[1] if found else ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._came:
                try:
                    self.log.append(json.loads(line))
                except ValueError:
                    self.errors.append(line)
                self._came.notify_all()

    def until(self, event: str) -> dict[str, Any]:
        with self._came:
            assert self._came.wait_for(lambda: any(line["event"] == event for line in self.log), 60), self.errors
        return next(line for line in self.log if line["event"] == event)

    def end(self) -> int:
        code = self.process.wait(30)
        self._reader.join()
        return code


@contextmanager
def server(*arguments: str, model: str | Path = PARITY, **environment: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "personaplex", "serve", "--model", str(model), "--port", "0", "--log", "json"]
    with subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        serve = Process(process)
        try:
            yield serve
        finally:
            process.kill()
            serve.end()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_it_serves_drains_and_ends() -> None:
    with server("--backend", "duplex", "--slots", "2", "--drain-seconds", "1.5") as serve:
        assert get(f"{serve.address}/health")[0] == 200, "it answers while it loads"
        assert serve.until("ready")["slots"] == {"duplex": 2}
        assert json.loads(get(f"{serve.address}/ready")[1]) == {
            "ready": True, "state": "ready", "slots": {"duplex": {"used": 0, "total": 2}},
        }  # fmt: skip
        with (
            calling(serve.address, {"text_prompt": "A secret role.", "seed": 1}) as polite,
            calling(serve.address) as call,
        ):
            polite.until(0)
            call.until(0)
            polite.converse(SOUND)
            page = get(f"{serve.address}/metrics")[1]
            assert re.search(r'personaplex_slots_used\{mode="duplex"\} 2.0', page)
            assert "personaplex_step_seconds_count 4.0" in page
            assert re.search(r'personaplex_step_seconds_bucket\{le="0.08"\} \d', page)
            serve.process.send_signal(signal.SIGTERM)
            serve.until("draining")
            assert get(f"{serve.address}/ready")[0] == 503
            with calling(serve.address) as late:
                assert late.end()[0] == 1013 and "about to stop" in late.errors[0]
            polite.converse(SOUND)  # whoever talks goes on
            polite.socket.close()
            assert call.end()[0] == 1013 and "about to stop" in call.errors[0]
        assert serve.end() == 0
        assert not serve.errors
        log = json.dumps(serve.log)
        assert "secret" not in log.lower(), "what people say is not logged"
        ends = {line["session"]: line["reason"] for line in serve.log if line["event"] == "session ended"}
        assert sorted(ends.values()) == ["closed", "shutdown"]


def test_a_signal_while_the_model_is_loaded_ends_it_in_order() -> None:
    with server("--backend", "duplex") as serve:
        serve.process.send_signal(signal.SIGTERM)
        assert serve.end() == 0 and not serve.errors


def test_a_second_signal_does_not_wait() -> None:
    with server("--backend", "duplex", "--drain-seconds", "600") as serve:
        serve.until("ready")
        with calling(serve.address) as call:
            call.until(0)
            serve.process.send_signal(signal.SIGINT)
            serve.until("draining")
            serve.process.send_signal(signal.SIGINT)
            assert serve.end() == 0


def test_a_model_that_cannot_be_loaded_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    with server(model=tmp_path / "nothing") as serve:
        assert serve.end() == 4
        assert len(serve.errors) == 1 and serve.errors[0].startswith("personaplex: ")


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = subprocess.run(
            [sys.executable, "-m", "personaplex", "serve", "--port", str(taken.getsockname()[1])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 2 and "--port names another" in run.stderr and run.stderr.count("\n") == 1


def test_https_with_a_certificate_made_here_and_a_token(tmp_path: Path) -> None:
    token = "a-token-of-this-test"
    arguments = ("--backend", "duplex", "--self-signed")
    with server(*arguments, XDG_DATA_HOME=str(tmp_path), PERSONAPLEX_TOKEN=token) as serve:
        assert serve.address.startswith("https://localhost:")
        serve.until("ready")
        folder = tmp_path / "personaplex" / "tls"
        assert (folder / "key.pem").stat().st_mode & 0o077 == 0
        trust = ssl.create_default_context(cafile=folder / "certificate.pem")
        with calling(serve.address, {"token": token}, ssl=trust) as call:
            call.until(0)
            call.converse(SOUND)
        serve.process.send_signal(signal.SIGTERM)
        assert serve.end() == 0
        assert token not in json.dumps(serve.log) + "".join(serve.errors)


def test_without_its_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fastapi", "prometheus_client"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["serve"]) == 2
    line = "personaplex: serving needs fastapi, prometheus_client; pip install 'personaplex-mlx[serve]'\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "set a token"),
        (["--host", "not.a.host.invalid", "--no-auth"], "cannot listen on not.a.host.invalid"),
        (["--token", "short"], "8 or more"),
        (["--tls", "no-such.pem", "no-such.key"], "no-such.pem does not exist"),
        (["--tls", "no-such.pem", "no-such.key", "--self-signed"], "not both"),
        (["--slots", "0"], "--slots is 0"),
        (["--persona", "nobody"], "unknown persona"),
        (["--origin", "example.org"], "scheme://host"),
        (["--retention-days", "3"], "without --history"),
        (["--llm", "nonsense"], "nonsense"),
        (["--kv-bits", "7"], "kv-bits"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(PARITY), "--port", "0", *arguments]) in (2, 5)
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1, error
