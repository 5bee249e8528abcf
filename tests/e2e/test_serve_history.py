"""`personaplex serve --history` as a process: what was said outlives kill -9, and a caller goes on from it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from websockets.sync.client import connect


@contextmanager
def served(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "personaplex", "serve", "--backend", "cascade", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            address = process.stdout.readline().split()[-1]
            while " ready " not in (line := process.stderr.readline()):
                assert line
            yield address, process
        finally:
            process.kill()
            process.stdout.close()
            process.stderr.close()


def post(url: str, about: dict[str, str]) -> dict[str, str]:
    asking = Request(url, json.dumps(about).encode(), {"content-type": "application/json"}, method="POST")
    with urlopen(asking) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


def test_what_was_said_outlives_kill_9(tmp_path: Path) -> None:
    place = tmp_path / "history.sqlite"
    with served("--history", str(place)) as (address, process):
        id = post(f"{address}/session", {"persona": "aria"})["session_id"]
        answer = post(f"{address}/chat", {"message": "What are your opening hours?", "session_id": id})
        assert "five" in answer["response"] and answer["kept"]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())

    with served("--history", str(place)) as (address, process):
        with urlopen(f"{address}/v1/history/{id}/export") as export:
            said = json.load(export)
        assert said["session"]["persona"] == "aria"
        assert [turn["content"] for turn in said["messages"]] == ["What are your opening hours?", answer["response"]]
        with connect(f"ws{address[4:]}/ws/chat?session_id={id}") as socket:
            assert len(json.loads(socket.recv())["messages"]) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_history_that_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "personaplex", "serve", "--backend", "cascade", "--port", "0"]
    for options, code in ((["--history", str(tmp_path)], 6), (["--history", "nonsense://x"], 2)):
        failed = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30, check=False)
        assert failed.returncode == code and len(failed.stderr.strip().splitlines()) == 1, failed.stderr
