"""Kernels are built once for every source and card, whoever asks, and kept; none is built that is there."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from personaplex.cuda.build import Builder, Code
from personaplex.cuda.kernel import Constant, Kernel, Kind, code
from personaplex.cuda.nvrtc import BuildFailed, Target
from personaplex.errors import BackendError

HOPPER = Target("sm_90a", binary=True)
SQUARE = Code("square_1", 'extern "C" __global__ void square_1(const float* x, float* y) {}')
CUBE = Code("cube_1", 'extern "C" __global__ void cube_1(const float* x, float* y) {}')
LONG = 10.0
"""Seconds after which a thread that waits for another has waited in vain."""


class Compiler:
    """It builds by turning letters round, and remembers what it was asked for."""

    def __init__(self, version: tuple[int, int] = (13, 0), before: Callable[[], object] = lambda: None) -> None:
        self.version, self.before = version, before
        self.asked: list[str] = []

    def compile(self, text: str, target: Target) -> bytes:
        self.asked.append(text)
        self.before()
        return f"{target.architecture}\0{text[::-1]}".encode()


class Refusing(Compiler):
    def compile(self, text: str, target: Target) -> bytes:
        self.asked.append(text)
        raise BuildFailed("\n".join(f"kernel.cu({line}): error: number {line}" for line in range(1, 30)))


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_built_is_not_built_again(tmp_path: Path) -> None:
    first, second = Compiler(), Compiler()
    builder = Builder(first, HOPPER, tmp_path / "kernels")
    built = builder(SQUARE)
    assert builder(SQUARE) == built and first.asked == [SQUARE.text]
    assert Builder(second, HOPPER, tmp_path / "kernels")(SQUARE) == built
    assert second.asked == []
    assert built == b"sm_90a\0" + SQUARE.text[::-1].encode()


@pytest.mark.parametrize(
    ("version", "target", "text"),
    [
        ((13, 1), HOPPER, SQUARE.text),
        ((12, 0), HOPPER, SQUARE.text),
        ((13, 0), Target("sm_100a", binary=True), SQUARE.text),
        ((13, 0), HOPPER._replace(binary=False), SQUARE.text),
        ((13, 0), HOPPER, SQUARE.text + "\n"),
    ],
)
def test_another_compiler_card_or_source_finds_nothing(
    version: tuple[int, int], target: Target, text: str, tmp_path: Path
) -> None:
    Builder(Compiler(), HOPPER, tmp_path)(SQUARE)
    other = Compiler(version)
    Builder(other, target, tmp_path)(SQUARE._replace(text=text))
    assert other.asked == [text]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-1], lambda b: b[:-1] + b"?"])
def test_a_damaged_file_is_built_anew(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    built = Builder(Compiler(), HOPPER, tmp_path)(SQUARE)
    kept = only_file(tmp_path)
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    compiler = Compiler()
    assert Builder(compiler, HOPPER, tmp_path)(SQUARE) == built
    assert compiler.asked == [SQUARE.text]
    assert kept.read_bytes() == whole


def test_a_write_that_fails_leaves_nothing_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    builder = Builder(Compiler(), HOPPER, tmp_path)
    with caplog.at_level(logging.DEBUG, "personaplex"):
        assert builder(SQUARE) and builder(CUBE)
    assert list(tmp_path.iterdir()) == []
    assert [record.levelname for record in caplog.records if "not kept" in record.message] == ["DEBUG"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "kernels", None):
        compiler = Compiler()
        builder = Builder(compiler, HOPPER, folder)
        assert builder(SQUARE) == builder(SQUARE)
        assert compiler.asked == [SQUARE.text]
    assert only_file(tmp_path).read_text() == "in the way"


def test_a_kernel_that_does_not_build_says_which_and_what_to_do(tmp_path: Path) -> None:
    compiler = Refusing()
    builder = Builder(compiler, HOPPER, tmp_path)
    for _ in range(2):
        with pytest.raises(BackendError) as raised:
            builder(SQUARE)
    said = str(raised.value)
    assert SQUARE.name in said and "sm_90a" in said and "PERSONAPLEX_KERNELS=stock" in said
    assert "number 1\n" in said and "number 12" not in said
    assert len(compiler.asked) == 2, "the next call tries again"
    with pytest.raises(BackendError):
        builder.all([CUBE])
    assert list(tmp_path.iterdir()) == []


def test_who_asks_while_a_kernel_is_built_waits_for_it() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(LONG)

    compiler = Compiler(before=hold)
    builder = Builder(compiler, HOPPER, None)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(builder, SQUARE)]
        assert begun.wait(LONG)
        asked += [pool.submit(builder, SQUARE) for _ in range(3)]
        go_on.set()
        assert len({future.result(LONG) for future in asked}) == 1
    assert compiler.asked == [SQUARE.text]


def test_several_kernels_are_built_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = threading.Barrier(2, timeout=LONG)
    compiler = Compiler(before=together.wait)
    builder = Builder(compiler, HOPPER, None)
    builder.all([SQUARE, CUBE])
    builder.all([SQUARE, CUBE])
    assert sorted(compiler.asked) == sorted([SQUARE.text, CUBE.text])


KERNEL = Kernel("square", "put", ("x",), ("y",), ("warp.cuh",))
KIND = Kind(KERNEL, (("N", 4), ("T", mx.float32)), (mx.float32, mx.float32))


def with_constants(*constants: tuple[str, Constant]) -> Kind:
    return KIND._replace(constants=constants)


@pytest.mark.parametrize(
    "other",
    [
        with_constants(("N", 5), ("T", mx.float32)),
        with_constants(("N", 4), ("T", mx.bfloat16)),
        with_constants(("N", True), ("T", mx.float32)),
        KIND._replace(types=(mx.bfloat16, mx.float32)),
        KIND._replace(types=(mx.float32, mx.bfloat16)),
        KIND._replace(kernel=replace(KERNEL, function="other")),
        KIND._replace(kernel=replace(KERNEL, sources=("warp.cuh", "vector.cuh"))),
        KIND._replace(kernel=replace(KERNEL, most_threads=128)),
        KIND._replace(kernel=replace(KERNEL, shared=64)),
    ],
)
def test_whatever_differs_has_another_name(other: Kind) -> None:
    """MLX finds what it has loaded by the name, with the shared memory that was asked for then."""
    assert code(other).name != code(KIND).name
    again = Kind(replace(KERNEL), KIND.constants, KIND.types)
    assert code(again) == code(KIND)


def test_the_source_declares_what_is_called() -> None:
    name, text = code(KIND)
    head = text[text.index('extern "C"') :]
    assert head.split("{")[0].split() == (f'extern "C" __global__ void {name}( const float* x, float* y)'.split())
    assert "constexpr int N = 4;\nusing T = float;\nput(x, y);" in head
