"""`personaplex serve` as a process of its own, on a free port, until it is ready; it ends with the block."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from tempfile import TemporaryFile
from types import TracebackType

from personaplex.errors import EngineError

READY_SECONDS = 600.0
"""A large model is loaded from a slow disk in less."""


class ServerProcess:
    """A context that is the server's address. Raises EngineError, with the server's last line, if it does not begin."""

    def __init__(self, options: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", "personaplex", "serve", "--port", "0", "--quiet", *options]
        self._process: subprocess.Popen[str] | None = None
        self._log = TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        try:
            assert self._process.stdout is not None
            address = self._process.stdout.readline().strip().removeprefix("listening on ")
            if not address.startswith("http"):
                raise self._failed()
            self._wait(address)
        except BaseException:
            self._end()
            raise
        return address

    def _wait(self, address: str) -> None:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                raise self._failed()
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                    if json.load(answer)["state"] == "ready":
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        raise EngineError(f"the server was not ready within {READY_SECONDS:.0f} s")

    def _failed(self) -> EngineError:
        if self._process is not None:
            self._process.wait(10)
        self._log.seek(0)
        said = [line for line in self._log.read().splitlines() if line.strip()]
        return EngineError(f"the server did not begin: {said[-1] if said else 'it said nothing'}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._log.close()
