"""What the model has made of voices and roles, kept: each prompt is read once per model, not once per caller."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from pathlib import Path

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.states import read_state, write_state
from personaplex.engine.generator import Prefix
from personaplex.engine.prompt import Prompt
from personaplex.errors import CheckpointError, OutputError
from personaplex.nn.state import n_bytes

_log = logging.getLogger("personaplex")
_KIND = "prefix"


class PrefixCache:
    """Trimmed one-slot prefixes by content: the least recently used leave memory, all stay in `folder` if there is one.

    `most_bytes` bounds the memory; `identity` is the model's fingerprint and whatever else changes what it makes of a
    prompt. `template` has the form of a prefix. A file that cannot be used is warned of, and written anew.
    """

    def __init__(self, identity: str, template: Prefix, most_bytes: int, folder: Path | None = None) -> None:
        self.identity = identity
        self.most_bytes = most_bytes
        self.folder = folder
        self._template = template
        self._kept: OrderedDict[str, Prefix] = OrderedDict()
        self._unwritten: tuple[str, Prefix] | None = None
        self.n_bytes = 0

    def key(self, prompt: Prompt) -> str:
        """The name of what this model makes of `prompt`."""
        digest = hashlib.sha256(self.identity.encode())
        digest.update(np.ascontiguousarray(prompt.columns).tobytes() + prompt.pending.tobytes())
        if prompt.embeddings is not None:
            digest.update(np.array(prompt.embeddings.astype(mx.float32)).tobytes())
        return digest.hexdigest()

    def get(self, key: str) -> Prefix | None:
        """The prefix, from memory or disk; None when it is to be read anew."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        path = self._path(key)
        try:
            if path is None or not path.exists():
                return None
            prefix, _ = read_state(path, _KIND, self.identity, self._template)
        except (CheckpointError, OSError) as error:
            _log.warning("a kept prompt is ignored and made anew: %s", error)
            return None
        self._keep(key, prefix)
        return prefix

    def put(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix; `write` puts it on disk, when nobody waits. No more than one waits for that."""
        self._keep(key, prefix)
        if self.folder is not None:
            self.write()
            self._unwritten = key, prefix

    def write(self) -> None:
        """Write what is new. A folder that cannot be written to is warned of: it costs time, not a conversation."""
        if self._unwritten is None:
            return
        (key, prefix), self._unwritten = self._unwritten, None
        path = self._path(key)
        assert path is not None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_state(path, _KIND, self.identity, prefix)
        except (OutputError, OSError) as error:
            _log.warning("a prompt could not be kept on disk: %s", error)

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.safetensors"

    def _keep(self, key: str, prefix: Prefix) -> None:
        self._kept[key] = prefix
        self.n_bytes += n_bytes(prefix)
        while self.n_bytes > self.most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.n_bytes -= n_bytes(oldest)
