"""Reading PyTorch's `.pt` files without PyTorch and without running what a stranger put into them.

A `.pt` is a zip of one pickle and raw storages. The pickle of a dict of tensors needs three names; an unpickler that
knows those and refuses every other cannot be made to do anything else.
"""

from __future__ import annotations

import io
import lzma
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from personaplex.errors import CheckpointError

_LARGEST_BYTES = 1 << 28

_STORAGES = {
    "BFloat16Storage": "bfloat16",
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
}


class _Storage:
    """A storage class named in the pickle."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str, name: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive, self._root, self._name = archive, root, name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise CheckpointError(
            f"{self._name} asks to run {module}.{name}; it holds more than tensors and was not opened"
        )

    def persistent_load(self, pid: Any) -> mx.array:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _Storage)):
            raise CheckpointError(f"{self._name} is damaged: its storages are not described as PyTorch does")
        raw = _member(self._archive, f"{self._root}/data/{pid[2]}", self._name)
        dtype = pid[1].dtype
        if dtype == "bfloat16":
            return mx.array(np.frombuffer(raw, "<u2")).view(mx.bfloat16)
        kind = np.dtype(dtype).newbyteorder("<")
        # MLX has no float64 on a GPU; a voice needs none.
        return mx.array(np.frombuffer(raw, kind).astype(np.float32 if dtype == "float64" else kind.newbyteorder("=")))


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> mx.array:
    if not isinstance(storage, mx.array) or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor is not described as PyTorch does")
    if len(size) != len(stride):
        raise ValueError("a tensor has as many strides as sizes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # Overlapping strides would make much of little; PyTorch saves no such tensors.
    if (0 not in size and last >= storage.size) or prod(size) > storage.size or max(size, default=0) >= 1 << 31:
        raise ValueError("a tensor reaches beyond its storage")
    return mx.contiguous(mx.as_strided(storage, tuple(size), tuple(stride), offset))


def _member(archive: zipfile.ZipFile, path: str, name: str) -> bytes:
    try:
        info = archive.getinfo(path)
    except KeyError:
        raise CheckpointError(f"{name} is damaged: {path} is missing inside") from None
    if info.file_size > _LARGEST_BYTES:
        raise CheckpointError(f"{name}: {path} inside unpacks to {info.file_size} bytes, too many for a voice")
    return archive.read(info)


def read_tensors(data: bytes, name: str) -> dict[str, mx.array]:
    """The dict of tensors in a `.pt` file's bytes; `name` is for messages.

    Raises CheckpointError when it is not a PyTorch zip, is damaged, or names anything but tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{name} is not a PyTorch file: it holds {len(pickles)} pickles, expected one")
            root = pickles[0].removesuffix("/data.pkl")
            loaded = _Unpickler(_member(archive, pickles[0], name), archive, root, name).load()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{name} is not a PyTorch file (a zip), or it was cut short") from error
    except CheckpointError:
        raise
    # A damaged pickle fails in many ways, each of them this one to the caller.
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError) as error:
        raise CheckpointError(f"{name} is damaged: {error}") from error
    except (
        struct.error,
        MemoryError,
        OverflowError,
        RecursionError,
        UnicodeError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise CheckpointError(f"{name} is damaged: {error}") from error
    except (RuntimeError, OSError) as error:  # an encrypted zip, for one
        raise CheckpointError(f"{name} is damaged: {error}") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, mx.array) for v in loaded.values()):
        raise CheckpointError(f"{name} does not hold a dict of tensors")
    return {str(key): value for key, value in loaded.items()}
