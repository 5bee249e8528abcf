"""What the model has made of voices and roles, kept: each prompt is read once per model, not once per caller."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.states import read_state, write_state
from personaplex.engine.generator import Prefix
from personaplex.engine.prompt import Prompt
from personaplex.errors import CheckpointError, OutputError
from personaplex.nn.state import n_bytes

_log = logging.getLogger("personaplex")
_KIND, _SUFFIX = "prefix", ".prefix.safetensors"


class PrefixCache:
    """Trimmed one-slot prefixes by content, in memory and in `folder` if there is one: the least recently used leave.

    `most_bytes` bounds the memory, `most_bytes_on_disk` the folder; `identity` is the model's fingerprint and whatever
    else changes what it makes of a prompt. `template` has the form of a prefix. A file that cannot be used is warned
    of, and written anew. `fetch` and `write` wait for the disk, and are for another thread than the rest.
    """

    def __init__(
        self,
        identity: str,
        template: Prefix,
        most_bytes: int,
        folder: Path | None = None,
        most_bytes_on_disk: int = 1 << 30,
    ) -> None:
        self.identity = identity
        self.most_bytes = most_bytes
        self.folder = folder
        self.most_bytes_on_disk = most_bytes_on_disk
        self._template = template
        self._kept: OrderedDict[str, Prefix] = OrderedDict()
        self.n_bytes = 0

    def key(self, prompt: Prompt) -> str:
        """The name of what this model makes of `prompt`."""
        digest = hashlib.sha256(self.identity.encode())
        digest.update(np.ascontiguousarray(prompt.columns).tobytes() + prompt.pending.tobytes())
        if prompt.embeddings is not None:
            digest.update(np.array(prompt.embeddings.astype(mx.float32)).tobytes())
        return digest.hexdigest()

    def get(self, key: str) -> Prefix | None:
        """The prefix, from memory."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix in memory."""
        if key in self._kept:
            return
        self._kept[key] = prefix
        self.n_bytes += n_bytes(prefix)
        while self.n_bytes > self.most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.n_bytes -= n_bytes(oldest)

    def fetch(self, key: str) -> Prefix | None:
        """The prefix, from disk; None when it is to be read anew."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            if not path.exists():
                return None
            prefix, _ = read_state(path, _KIND, self.identity, self._template)
        except (CheckpointError, OSError) as error:
            _log.warning("a kept prompt is ignored and made anew: %s", error)
            return None
        with suppress(OSError):  # somebody else's folder
            os.utime(path)  # used now: the oldest files leave first
        return prefix

    def write(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix on disk. A folder that cannot be written to is warned of: it costs time, not a conversation."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state(self._path(self.folder, key), _KIND, self.identity, prefix)
            self._clear_out(self.folder)
        except (OutputError, OSError) as error:
            _log.warning("a prompt could not be kept on disk: %s", error)

    def _clear_out(self, folder: Path) -> None:
        """Remove the files that were not used for longest, until the folder is small enough."""
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob(f"*{_SUFFIX}"))
        excess = sum(size for _, size, _ in files) - self.most_bytes_on_disk
        for _, size, path in files:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _path(self, folder: Path, key: str) -> Path:
        return folder / f"{key}{_SUFFIX}"
