"""The compiler's C interface, spoken to a stand-in: what it is given, what is taken from it, what is let go."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, cast

import pytest

from personaplex.cuda.nvrtc import BuildFailed, Nvrtc, Target, headers, target


class Library:
    """As libnvrtc answers: 0, with results where the caller's pointers show."""

    def __init__(self, log: bytes = b"") -> None:
        self.log, self.binary = log, b"\x7fELF\0\0code"
        self.source, self.options, self.alive = b"", list[bytes](), 0

    def nvrtcVersion(self, major: Any, minor: Any) -> int:  # noqa: N802 - the C functions' names
        major._obj.value, minor._obj.value = 13, 2
        return 0

    def nvrtcGetNumSupportedArchs(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvrtcGetSupportedArchs(self, numbers: Any) -> int:  # noqa: N802
        numbers[0], numbers[1] = 100, 90
        return 0

    def nvrtcCreateProgram(self, program: Any, source: bytes, *_: Any) -> int:  # noqa: N802
        self.source, program._obj.value = source, 7
        self.alive += 1
        return 0

    def nvrtcCompileProgram(self, program: Any, n: int, options: Any) -> int:  # noqa: N802
        assert program.value == 7
        self.options = [options[i] for i in range(n)]
        return 6 if self.log else 0

    def _sized(self, what: bytes, size: Any) -> int:
        size._obj.value = len(what)
        return 0

    def nvrtcGetProgramLogSize(self, _: Any, size: Any) -> int:  # noqa: N802
        return self._sized(self.log, size)

    def nvrtcGetCUBINSize(self, _: Any, size: Any) -> int:  # noqa: N802
        return self._sized(self.binary, size)

    def nvrtcGetProgramLog(self, _: Any, buffer: Any) -> int:  # noqa: N802
        buffer[:] = self.log
        return 0

    def nvrtcGetCUBIN(self, _: Any, buffer: Any) -> int:  # noqa: N802
        buffer[:] = self.binary
        return 0

    def nvrtcGetPTXSize(self, _: Any, size: Any) -> int:  # noqa: N802
        return 5

    def nvrtcDestroyProgram(self, program: Any) -> int:  # noqa: N802
        self.alive -= 1
        return 0


def compiler(library: Library) -> Nvrtc:
    return Nvrtc(cast(ctypes.CDLL, library), [Path("/headers")])


def test_a_kernel_is_built_for_its_card() -> None:
    library = Library()
    made = compiler(library)
    assert made.version == (13, 2) and made.architectures == (90, 100)
    assert made.compile("void one() {}", Target("sm_90a", binary=True)) == b"\x7fELF\0\0code"
    assert library.source == b"void one() {}"
    assert {b"--gpu-architecture=sm_90a", b"--include-path=/headers"} < set(library.options)
    assert library.alive == 0


def test_a_refusal_carries_the_log() -> None:
    library = Library(log=b"kernel.cu(1): error\0")
    with pytest.raises(BuildFailed, match=r"^kernel.cu\(1\): error$"):
        compiler(library).compile("void one( {}", Target("sm_90a", binary=True))
    assert library.alive == 0


def test_a_call_that_fails_is_told_and_lets_go() -> None:
    library = Library()
    with pytest.raises(BuildFailed, match="nvrtcGetPTXSize failed with 5"):
        compiler(library).compile("void one() {}", Target("compute_90", binary=False))
    assert library.alive == 0


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), Target("sm_90a", binary=True)),
        ((8, 6), Target("sm_86", binary=True)),
        ((12, 1), Target("sm_121a", binary=True)),
        ((12, 7), Target("compute_121", binary=False)),
        ((7, 0), None),
    ],
)
def test_what_a_card_is_built_for(capability: tuple[int, int], expected: Target | None) -> None:
    assert target((75, 86, 90, 100, 121), capability) == expected


def test_headers_are_looked_for_where_mlx_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages, home = tmp_path / "packages", tmp_path / "home"
    bundled = packages / "mlx" / "include" / "cccl"
    wheel, older = packages / "nvidia" / "cu13" / "include", packages / "nvidia" / "cuda_runtime" / "include"
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    for folder in (bundled, wheel, older, home / "include"):
        folder.mkdir(parents=True)
    (home / "include" / "cuda_bf16.h").touch()
    assert headers(packages, 13) == [bundled, home / "include"]
    (older / "cuda_bf16.h").touch()
    assert headers(packages, 13) == [bundled, older]
    (wheel / "cuda_bf16.h").touch()
    assert headers(packages, 13) == [bundled, wheel]
    assert headers(packages, 12) == [bundled, older]
    bundled.rmdir()
    assert headers(packages, 13) == [wheel]
