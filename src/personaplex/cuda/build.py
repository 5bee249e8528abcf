"""Kernels that are built once: kept on disk between processes, and built several at a time.

MLX builds a custom kernel when it is first called, one after the other, and keeps none of them on disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol

from personaplex.cuda.nvrtc import BuildFailed, Target
from personaplex.errors import BackendError, OutputError
from personaplex.files import whole_file

_log = logging.getLogger("personaplex")
_DIGEST = hashlib.sha256().digest_size
_LOG_LINES = 6
_MOST_AT_ONCE = 16
"""Kernels being built: the compiler takes some hundred megabytes for each."""


class Code(NamedTuple):
    """One kernel to be built: its `name`, of which there is one per `text`, and the CUDA source that defines it."""

    name: str
    text: str


class Compiler(Protocol):
    """`nvrtc.Nvrtc`, or what stands for it."""

    version: tuple[int, int]

    def compile(self, text: str, target: Target) -> bytes:
        """The built `text`. Raises BuildFailed."""


class Builder:
    """Builds kernels for one `target`. Any number of threads may call it; each kernel is built once.

    They are kept in `folder`; where there is none, or it cannot be written, each process builds its own.
    """

    def __init__(self, compiler: Compiler, target: Target, folder: Path | None) -> None:
        self._compiler, self._target, self._folder = compiler, target, folder
        self._futures: dict[str, Future[bytes]] = {}
        self._lock = Lock()
        self._said = False

    def __call__(self, code: Code) -> bytes:
        """The built kernel, from this process, from disk, or from the compiler. Raises BackendError."""
        with self._lock:
            future = self._futures.get(code.name)
            if mine := future is None:
                future = self._futures[code.name] = Future()
        if mine:
            try:
                future.set_result(self._found(code))
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    del self._futures[code.name]  # whoever waits gets the error, the next one tries again
        return future.result()

    def all(self, codes: Iterable[Code]) -> None:
        """Have these built, as many at once as there are processors, the longest first. Raises BackendError."""
        with self._lock:
            missing = [code for code in codes if code.name not in self._futures]
        if missing:
            with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1, _MOST_AT_ONCE)) as pool:
                list(pool.map(self, sorted(missing, key=lambda code: -len(code.text))))

    def path(self, code: Code) -> Path | None:
        """Where the kernel is kept."""
        if self._folder is None:
            return None
        # The source holds its types, sizes and name; headers come with the compiler.
        parts = (code.text, *self._target.options, self._target.binary, *self._compiler.version)
        key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
        return self._folder / f"{code.name}-{key[:32]}.kernel"

    def _found(self, code: Code) -> bytes:
        path = self.path(code)
        try:
            kept = path.read_bytes() if path else b""
        except OSError:
            kept = b""
        digest, built = kept[:_DIGEST], kept[_DIGEST:]
        if built and hashlib.sha256(built).digest() == digest:
            return built
        try:
            built = self._compiler.compile(code.text, self._target)
        except BuildFailed as error:
            first = "\n".join(str(error).splitlines()[:_LOG_LINES])
            raise BackendError(
                f"the CUDA kernel {code.name} does not build for {self._target.architecture}; "
                f"PERSONAPLEX_KERNELS=stock does without kernels:\n{first}"
            ) from error
        if path:
            self._keep(path, built)
        return built

    def _keep(self, path: Path, built: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as fresh:
                fresh.write_bytes(hashlib.sha256(built).digest() + built)
        except (OSError, OutputError) as error:
            if not self._said:
                self._said = True
                _log.debug("built kernels are not kept: %s", error)
