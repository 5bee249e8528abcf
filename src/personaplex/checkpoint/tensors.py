"""A safetensors file as a checked table of names, shapes and lazily read arrays.

The header is parsed here, before MLX touches the file, so that a cut, renamed or misshapen tensor is an error that
names it and costs no memory.

A float tensor may be stored as int8: `name` (I8) and `name.scale` (F32 or F16), one scale for each index of axis 0.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import mlx.core as mx

from personaplex.errors import CheckpointError

_WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_WIDTHS |= {"I8": 1, "U8": 1, "BOOL": 1}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of one value."""
        return _WIDTHS[self.dtype]

    @property
    def n_bytes(self) -> int:
        """Bytes of the data."""
        return prod(self.shape) * self.width


class TensorFile:
    """An open safetensors file and its `metadata`. Arrays are read from disk when they are evaluated, not before.

    `more` files are read as if their tensors were in the first, and `rename(file, name)` gives tensors other names.
    Raises CheckpointError when a file is missing, not safetensors, or shorter than its header says.
    """

    def __init__(self, path: Path, *more: Path, rename: Callable[[str, str], str] | None = None) -> None:
        self.path = path.parent if more else path
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, str] = {}
        self._arrays: dict[str, mx.array] = {}
        for part in (path, *more):
            entries, metadata = _read_header(part)
            renamed = {rename(part.name, name) if rename else name: name for name in entries}
            if twice := sorted(set(renamed) & set(self.entries)):
                raise CheckpointError(f"{part}: the tensor {twice[0]!r} is in another file as well")
            try:
                loaded = mx.load(str(part), format="safetensors")
            except (RuntimeError, ValueError) as error:
                raise CheckpointError(f"{part} cannot be read: {error}") from error
            assert isinstance(loaded, dict)
            self.metadata = metadata | self.metadata
            self.entries |= {ours: entries[theirs] for ours, theirs in renamed.items()}
            self._arrays |= {ours: loaded[theirs] for ours, theirs in renamed.items()}

    def take(self, name: str) -> mx.array:
        """The lazy array of `name`; the file forgets it, so that its memory is free when the caller is done.

        A tensor stored as int8 with its scale comes as float32.
        """
        if name not in self._arrays:
            raise CheckpointError(f"{self.path}: the tensor {name!r} is missing")
        array = self._arrays.pop(name)
        if not self._has_scale(name):
            return array
        scale = self._scale(name).reshape(-1, *(1,) * (array.ndim - 1))
        self._arrays.pop(scale_name(name))
        return array.astype(mx.float32) * scale

    def check(self, expected: Mapping[str, Entry | tuple[int, ...]]) -> None:
        """Raise CheckpointError naming the first tensor that is missing, unknown or misshapen.

        `expected` maps names to a shape, for a float tensor, or to an Entry where the type matters too.
        """
        known = set(expected)
        for name, want in expected.items():
            found = self.entries.get(name)
            shape, dtype = (want.shape, want.dtype) if isinstance(want, Entry) else (want, None)
            if found is None:
                raise CheckpointError(f"{self.path}: the tensor {name!r} {list(shape)} is missing")
            if found.shape != tuple(shape):
                raise CheckpointError(
                    f"{self.path}: the tensor {name!r} has shape {list(found.shape)}, expected {list(shape)}"
                )
            if dtype and found.dtype != dtype:
                raise CheckpointError(f"{self.path}: the tensor {name!r} is {found.dtype}, expected {dtype}")
            if dtype is None and found.dtype == "I8":
                self._scale(name)
            if scale_name(name) in self.entries and scale_name(name) not in expected:
                if found.dtype != "I8":
                    raise CheckpointError(
                        f"{self.path}: the scale {scale_name(name)!r} is there, but {name!r} is {found.dtype}, not I8"
                    )
                known.add(scale_name(name))
        if unknown := sorted(set(self.entries) - known):
            raise CheckpointError(
                f"{self.path}: unknown tensor {unknown[0]!r}"
                + (f" and {len(unknown) - 1} more" if unknown[1:] else "")
                + "; the file does not fit the configuration"
            )

    def _has_scale(self, name: str) -> bool:
        return self.entries[name].dtype == "I8" and scale_name(name) in self._arrays

    def _scale(self, name: str) -> mx.array:
        """The scales [rows] of the int8 tensor `name`, float32, checked: they are small, so they are read at once."""
        shape, scale = self.entries[name].shape, self.entries.get(scale_name(name))
        if scale is None:
            raise CheckpointError(f"{self.path}: the tensor {name!r} is I8, but its {scale_name(name)!r} is missing")
        if len(shape) < 2:
            raise CheckpointError(f"{self.path}: the tensor {name!r} is I8 and {list(shape)}; only rows can be scaled")
        if scale.shape != shape[:1] or scale.dtype not in ("F32", "F16"):
            raise CheckpointError(
                f"{self.path}: the scale {scale_name(name)!r} is {scale.dtype} {list(scale.shape)}, "
                f"expected F32 or F16 {list(shape[:1])}"
            )
        values = self._arrays[scale_name(name)].astype(mx.float32)
        if not bool((mx.isfinite(values) & (values >= 0)).all().item()):
            raise CheckpointError(f"{self.path}: the scale {scale_name(name)!r} holds values that are no scales")
        return values


def scale_name(name: str) -> str:
    """The tensor that holds the scales of the int8 tensor `name`."""
    return f"{name}.scale"


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise CheckpointError(f"{path} is not a safetensors file, or it was cut short ({size} bytes)")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not an object")
    notes = header.pop("__metadata__", None)
    metadata = {str(key): str(value) for key, value in notes.items()} if isinstance(notes, dict) else {}
    data_bytes = size - 8 - length
    return {name: _entry(path, name, about, data_bytes) for name, about in header.items()}, metadata


def _entry(path: Path, name: str, about: object, data_bytes: int) -> Entry:
    try:
        assert isinstance(about, dict)
        dtype, shape, (begin, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        sound = sound and end - begin == prod(shape) * _WIDTHS[dtype]
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of {name!r} is damaged") from error
    if not sound:
        raise CheckpointError(f"{path}: the header entry of {name!r} contradicts itself")
    if end > data_bytes:
        raise CheckpointError(
            f"{path} was cut short: the tensor {name!r} ends at byte {end} of the data, the file has {data_bytes}; "
            "download it again"
        )
    return Entry(dtype, shape)
