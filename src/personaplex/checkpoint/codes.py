"""Codes in safetensors files: what `codec`, `trace` and other programs hand each other."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from personaplex.checkpoint.tensors import TensorFile
from personaplex.errors import AudioError


def read_codes(path: Path, name: str, n_codebooks: int, card: int) -> mx.array:
    """The tensor `name` [1, K, T] of a file, as int32.

    Raises AudioError when it is not there, has another shape, or holds codes outside 0 ... card - 1;
    CheckpointError when the file is not safetensors.
    """
    file = TensorFile(path)
    if name not in file.entries:
        raise AudioError(f"{path} holds no tensor {name!r}; it holds {', '.join(sorted(file.entries)) or 'nothing'}")
    entry = file.entries[name]
    if len(entry.shape) != 3 or entry.shape[:2] != (1, n_codebooks) or entry.shape[2] == 0:
        raise AudioError(f"{path}: {name} has shape {list(entry.shape)}, expected [1, {n_codebooks}, frames]")
    if entry.dtype[0] not in "IU":
        raise AudioError(f"{path}: {name} is {entry.dtype}; codes are whole numbers")
    codes = file.take(name).astype(mx.int64)
    if bool(((codes < 0) | (codes >= card)).any().item()):
        raise AudioError(f"{path}: {name} holds codes outside 0 ... {card - 1}")
    return codes.astype(mx.int32)
