"""Codes in safetensors files: what `codec`, `trace` and other programs hand each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from personaplex.checkpoint.tensors import TensorFile
from personaplex.errors import AudioError, CheckpointError


def read_codes(path: Path, names: Sequence[str], n_codebooks: int, card: int) -> mx.array:
    """The first of the tensors `names` [1, K, T] that a file holds, as int32.

    Raises AudioError when the file is not safetensors, holds none of them, or one of another shape or with codes
    outside 0 ... card - 1.
    """
    try:
        file = TensorFile(path)
    except CheckpointError as error:
        raise AudioError(str(error)) from error
    name = next((name for name in names if name in file.entries), None)
    if name is None:
        raise AudioError(
            f"{path} holds no tensor {names[0]!r}; it holds {', '.join(sorted(file.entries)) or 'nothing'}"
        )
    entry = file.entries[name]
    if len(entry.shape) != 3 or entry.shape[:2] != (1, n_codebooks) or entry.shape[2] == 0:
        raise AudioError(f"{path}: {name} has shape {list(entry.shape)}, expected [1, {n_codebooks}, frames]")
    if entry.dtype[0] not in "IU":
        raise AudioError(f"{path}: {name} is {entry.dtype}; codes are whole numbers")
    codes = file.take(name).astype(mx.int64)
    if bool(((codes < 0) | (codes >= card)).any().item()):
        raise AudioError(f"{path}: {name} holds codes outside 0 ... {card - 1}")
    return codes.astype(mx.int32)
