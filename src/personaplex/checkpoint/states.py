"""States on disk: a one-slot state as safetensors, with what it needs to be refused where it does not belong.

A file names its kind, the format's version, the model's fingerprint and a checksum of its values; rings are stored as
far as they were written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, cast

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.tensors import TensorFile
from personaplex.errors import CheckpointError, OutputError
from personaplex.files import whole_file
from personaplex.nn.state import named, renamed, transformers

State = TypeVar("State")

VERSION = "2"
_RING_AXIS = 2
_FARTHEST = 1 << 30
"""Tokens of 40 ms in a year and more: positions beyond would overflow."""


def write_state(path: Path, kind: str, fingerprint: str, state: Any, notes: dict[str, Any] | None = None) -> None:
    """Write a trimmed one-slot `state` and JSON `notes` to `path` (.safetensors), whole or not at all.

    Raises OutputError when it cannot be written, or has another suffix.
    """
    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: the name must end in .safetensors")
    values = named(state)
    about = {"kind": kind, "version": VERSION, "model": fingerprint, "notes": json.dumps(notes or {})}
    with whole_file(path) as temporary:
        mx.save_safetensors(str(temporary), values, metadata=about | {"checksum": _checksum(values, about)})


def read_state(path: Path, kind: str, fingerprint: str, template: State) -> tuple[State, dict[str, Any]]:
    """The state that `write_state` wrote, and its notes.

    `template` is a state of the same form, its rings at full length; only its shapes and types are looked at.
    Raises CheckpointError for a file that is damaged, of another kind or version, or made with another model.
    """
    file = TensorFile(path)
    about = {key: file.metadata.get(key, "") for key in ("kind", "version", "model", "notes")}
    if about["kind"] != kind:
        raise CheckpointError(f"{path} is no {kind} of a conversation")
    if about["version"] != VERSION:
        raise CheckpointError(f"{path} has format {about['version']!r}; this version reads {VERSION!r}")
    if about["model"] != fingerprint:
        raise CheckpointError(f"{path} was made with another model; load that one to use it")
    wanted = named(template)
    file.check({name: file.entries.get(name, leaf.shape) for name, leaf in wanted.items()})
    values = {name: file.take(name) for name in wanted}
    for name, leaf in wanted.items():
        _check(path, name, values[name], leaf)
    mx.eval(values)  # whichever thread uses them
    if _checksum(values, about) != file.metadata.get("checksum"):
        raise CheckpointError(f"{path} is damaged: its values are not those that were written")
    state = renamed(template, values)
    _check_rings(path, state, template)
    return state, _notes(path, about["notes"])


def _notes(path: Path, text: str) -> dict[str, Any]:
    try:
        notes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its notes are not JSON") from error
    if not isinstance(notes, dict):
        raise CheckpointError(f"{path} is damaged: its notes are not an object")
    return notes


def _check_rings(path: Path, state: Any, template: Any) -> None:
    """A state may see every row that its position says was written: they must all come with it."""
    for found, whole in zip(transformers(state), transformers(template), strict=True):
        position, most = cast(int, found.position.item()), whole.rings[0].k.shape[_RING_AXIS]
        rows = min(max(1, position), most)
        if not 0 <= position < _FARTHEST or any(leaf.shape[_RING_AXIS] != rows for kv in found.rings for leaf in kv):
            raise CheckpointError(f"{path} is damaged: its rings do not hold what was heard up to position {position}")


def _check(path: Path, name: str, found: mx.array, wanted: mx.array) -> None:
    fits = found.dtype == wanted.dtype and found.ndim == wanted.ndim
    for axis in range(wanted.ndim if fits else 0):
        is_ring = axis == _RING_AXIS and wanted.ndim == 4
        fits &= found.shape[axis] <= wanted.shape[axis] if is_ring else found.shape[axis] == wanted.shape[axis]
    if not fits:
        raise CheckpointError(
            f"{path}: {name} is {found.dtype} {list(found.shape)}, expected {wanted.dtype} {list(wanted.shape)}; "
            "it was made with another precision or window"
        )


def _checksum(values: dict[str, mx.array], about: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(values.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        digest.update(np.ascontiguousarray(np.array(bits)).data)
    return digest.hexdigest()
