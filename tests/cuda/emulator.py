"""Runs the package's CUDA kernels on a processor, so that they are tested where there is no card."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex.cuda.kernel import CUDA_TYPES, Constant, Kernel, declared, on_card, on_device

_BITS = {mx.bfloat16: mx.uint16, mx.float16: mx.uint16}
HERE = Path(__file__).parent
SLACK = 4 if on_card() else 1
"""How much further apart results may be on a card, where MLX's own operations add up in another order."""


def emulate(
    kernel: Kernel,
    inputs: Sequence[mx.array],
    outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    blocks: int,
    threads: int,
    constants: Mapping[str, Constant],
) -> list[mx.array]:
    """What `personaplex.cuda.kernel.launch` is in the tests: the same call, computed at once by fibers.

    Outputs begin as NaN or as large numbers, so that one that is not written shows. Where there is a card (`make card`)
    it computes, and the same tests hold the same kernels against MLX's operations there.
    """
    assert len(inputs) == len(kernel.inputs), kernel.name
    assert len(outputs) == len(kernel.outputs), kernel.name
    if on_card():
        computed = on_device(kernel, inputs, outputs, blocks, threads, constants)
        mx.eval(computed)
        return computed
    types = tuple(CUDA_TYPES[array.dtype] for array in inputs), tuple(CUDA_TYPES[dtype] for _, dtype in outputs)
    library = _library(kernel, *types, tuple(sorted(constants.items())))
    taken = [_memory(array) for array in inputs]
    made = [np.full(int(np.prod(shape)) * dtype.size, 0xFF, np.uint8) for shape, dtype in outputs]
    pointers = (ctypes.c_void_p * (len(taken) + len(made)))(*[array.ctypes.data for array in [*taken, *made]])
    library.run(pointers, ctypes.c_uint(blocks), ctypes.c_uint(threads), ctypes.c_size_t(kernel.shared))
    return [mx.array(memory).view(dtype).reshape(shape) for memory, (shape, dtype) in zip(made, outputs, strict=True)]


def fewer(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """Patch `name`, the size of something, with what an emulator can bear; a card has the sizes that are shipped."""
    if not on_card():
        monkeypatch.setattr(name, value)


def _memory(array: mx.array) -> np.ndarray:
    """The array's own memory, without a copy if it is contiguous: a kernel may write to what it was given."""
    bits = array.view(_BITS[array.dtype]) if array.dtype in _BITS else array
    mx.eval(bits)
    return np.ascontiguousarray(np.array(bits, copy=False))


@cache
def _library(
    kernel: Kernel, inputs: tuple[str, ...], outputs: tuple[str, ...], constants: tuple[tuple[str, Constant], ...]
) -> ctypes.CDLL:
    lines = ["static void* const* all_pointers;", "static void kernel(void*) {"]
    names = [
        *zip(kernel.inputs, [f"const {t}" for t in inputs], strict=True),
        *zip(kernel.outputs, outputs, strict=True),
    ]
    lines += [f"  {kind}* {name} = static_cast<{kind}*>(all_pointers[{i}]);" for i, (name, kind) in enumerate(names)]
    lines.append(declared(dict(constants)))
    lines += [f"  {kernel.body}", "}"]
    run = 'extern "C" void run(void* const* pointers, unsigned blocks, unsigned threads, size_t dynamic) {\n'
    run += "  all_pointers = pointers;\n  emulator::run(kernel, nullptr, blocks, threads, dynamic);\n}\n"
    text = '#include "emulator.h"\n' + kernel.header + "\n".join(lines) + "\n" + run
    digest = hashlib.sha256((text + (HERE / "emulator.h").read_text()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "personaplex-emulated-kernels"
    folder.mkdir(exist_ok=True)
    built = folder / f"{kernel.name}-{digest}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            code = Path(fresh) / "kernel.cpp"
            code.write_text(text)
            # Fused multiply-adds, as a card has them, are left out: the tests' tolerances cover both.
            command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-w", f"-I{HERE}", str(code), "-o", f"{code}.so"]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, f"{kernel.name} does not build:\n{done.stderr[:4000]}"
            Path(f"{code}.so").rename(built)
    return ctypes.CDLL(str(built))
