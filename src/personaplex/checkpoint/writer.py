"""Writing safetensors tensor by tensor: the header first, from names and shapes alone, then the data.

A file of any size takes the memory of one tensor, and what was written is read back before it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.tensors import Entry
from personaplex.errors import OutputError

DTYPES = {mx.uint32: "U32", mx.float32: "F32", mx.bfloat16: "BF16", mx.float16: "F16"}
_BLOCK = 1 << 22


def header(entries: Mapping[str, Entry]) -> tuple[bytes, dict[str, int]]:
    """What comes before the data of a safetensors file, and at which byte of the file each tensor begins.

    Wide types come first, as in files that the safetensors library writes, so that nothing is out of alignment.
    """
    about: dict[str, object] = {}
    starts, end = {}, 0
    for name in sorted(entries, key=lambda name: (-entries[name].width, name)):
        entry = entries[name]
        starts[name], end = end, end + entry.n_bytes
        about[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [starts[name], end]}
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    before = struct.pack("<Q", len(text)) + text
    return before, {name: len(before) + start for name, start in starts.items()}


class TensorWriter:
    """A safetensors file being written: `put` every tensor, in any order, then `finish`. Writing raises OSError."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self._path, self._entries = path, entries
        self._before, self._starts = header(entries)
        self._sums: dict[str, int] = {}
        self._file = path.open("wb")
        self._file.write(self._before)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, name: str, array: mx.array) -> None:
        """Write one tensor, which must be what the header says."""
        assert Entry(DTYPES[array.dtype], array.shape) == self._entries[name], name
        raw = np.asarray(mx.contiguous(array).view(mx.uint8))
        self._file.seek(self._starts[name])
        self._file.write(raw.data)
        self._sums[name] = zlib.crc32(raw.data)

    def finish(self) -> str:
        """Read the file back and return its SHA-256. Raises OutputError when it is not what was written."""
        assert self._sums.keys() == self._entries.keys()
        self._file.flush()
        os.fsync(self._file.fileno())
        digest, at = hashlib.sha256(), 0
        with self._path.open("rb") as file:
            digest.update(file.read(len(self._before)))
            for name in sorted(self._starts, key=self._starts.__getitem__):
                left, at = self._entries[name].n_bytes, 0
                while left and (block := file.read(min(left, _BLOCK))):
                    digest.update(block)
                    at, left = zlib.crc32(block, at), left - len(block)
                if at != self._sums[name]:
                    raise OutputError(f"{self._path}: {name!r} is not read back as it was written; is the disk sound?")
        return digest.hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
