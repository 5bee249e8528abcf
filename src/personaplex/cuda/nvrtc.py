"""NVIDIA's run-time compiler, which MLX has loaded: CUDA source in, a kernel for one kind of card out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

_MAJORS = (13, 12)
_OF_ONE_CARD_ONLY = {90, 100, 121}
"""Architectures built as MLX builds them: with what their successors do not have."""


class BuildFailed(Exception):  # noqa: N818 - the caller makes a BackendError of it
    """The compiler refused; its log."""


class Target(NamedTuple):
    """What is built for: an `architecture` (sm_90a); `binary` is its machine code, else it is PTX for the driver."""

    architecture: str
    binary: bool

    @property
    def options(self) -> tuple[str, ...]:
        """What the compiler is told, but for where headers are. Functions are the card's unless they say otherwise."""
        return f"--gpu-architecture={self.architecture}", "--device-as-default-execution-space", "--disable-warnings"


class Nvrtc:
    """The compiler. Its calls may come from several threads at once and run at once: ctypes lets go of Python's lock.

    `version` is (major, minor); `architectures` those it builds machine code for, as 10 x major + minor.
    """

    def __init__(self, library: ctypes.CDLL, headers: Sequence[Path]) -> None:
        self._library = library
        self._includes = [f"--include-path={folder}" for folder in headers]
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        self.architectures = tuple(sorted(numbers))

    def compile(self, text: str, target: Target) -> bytes:
        """The built `text`. Raises BuildFailed with the compiler's log."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
        try:
            options = [option.encode() for option in (*target.options, *self._includes)]
            given = (ctypes.c_char_p * len(options))(*options)
            if self._library.nvrtcCompileProgram(program, len(options), given):
                raise BuildFailed(self._read("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace"))
            return self._read("nvrtcGetCUBIN" if target.binary else "nvrtcGetPTX", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, name: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(name, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        if failed := getattr(self._library, name)(*arguments):
            raise BuildFailed(f"{name} failed with {failed}")


def target(architectures: Sequence[int], capability: tuple[int, int]) -> Target | None:
    """What a card of this compute `capability` is built for: its machine code, or PTX where the compiler is older than
    the card; None where it is younger than what the compiler knows at all.
    """
    card = 10 * capability[0] + capability[1]
    if card in architectures:
        return Target(f"sm_{card}{'a' if card in _OF_ONE_CARD_ONLY else ''}", binary=True)
    older = [number for number in architectures if number < card]
    return Target(f"compute_{max(older)}", binary=False) if older else None


def find() -> Nvrtc | None:
    """The compiler that MLX has loaded, with the headers that MLX would give it; None where either is not found."""
    for major in _MAJORS:
        library, folders = _loaded(f"libnvrtc.so.{major}"), headers(Path(mx.__file__).parents[1], major)
        if library is not None and folders:
            return Nvrtc(library, folders)
    return None


def _loaded(name: str) -> ctypes.CDLL | None:
    # No other than MLX's: a newer one may build what the driver does not take.
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:
        return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None


def headers(packages: Path, major: int) -> list[Path]:
    """CCCL's headers as MLX's wheel in `packages` brings them, and the first folder that has CUDA's own; none without.

    Of CUDA's own the wheel of that `major` version comes first, then CUDA_HOME, CUDA_PATH and the usual place.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    wheels = [packages / "nvidia" / f"cu{major}", packages / "nvidia" / "cuda_runtime"]
    own = [home / "include" for home in (*wheels, *map(Path, homes), Path("/usr/local/cuda"))]
    found = next((folder for folder in own if (folder / "cuda_bf16.h").is_file()), None)
    bundled = packages / "mlx" / "include" / "cccl"
    return [folder for folder in (bundled, found) if folder.is_dir()] if found else []
