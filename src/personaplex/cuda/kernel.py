"""A CUDA kernel that MLX builds when it is first called, and where kernels are used at all."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

import mlx.core as mx

from personaplex.errors import BackendError, UsageError

Constant = int | bool | mx.Dtype

CUDA_TYPES = {
    mx.float32: "float",
    mx.bfloat16: "__nv_bfloat16",
    mx.float16: "__half",
    mx.int32: "int32_t",
    mx.uint32: "uint32_t",
    mx.int8: "int8_t",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.bool_: "bool",
}
"""What MLX's types are called in a kernel."""


@cache
def on_card() -> bool:
    """Whether this process computes on an NVIDIA card."""
    return bool(mx.cuda.is_available()) and mx.default_device().type == mx.DeviceType.gpu


def enabled(family: str = "") -> bool:
    """Whether kernels are to be used: on an NVIDIA card, unless PERSONAPLEX_KERNELS says `stock` and not `auto`.

    Behind `auto` stand, with commas, the families to leave out: `auto,no-stack,no-tiles`. With `stock` MLX's own
    operations compute everything. Raises UsageError for other words.
    """
    wish = _wish(os.environ.get("PERSONAPLEX_KERNELS") or "auto")
    somewhere = launch is not on_device or (on_card() and "auto" in wish)
    return somewhere and (not family or f"no-{family}" not in wish)


@cache
def _wish(text: str) -> frozenset[str]:
    words = frozenset(text.split(","))
    if unknown := words - {"auto", "stock", "no-stack", "no-tiles"}:
        raise UsageError(
            f"PERSONAPLEX_KERNELS is {text!r}, of which {sorted(unknown)[0]!r} means nothing; expected stock, or auto "
            "with no-stack or no-tiles behind it, commas between them"
        )
    return words


@cache
def multiprocessors() -> int:
    """Multiprocessors of the card: as many blocks run at once at least, and may wait for each other."""
    # MLX does not tell; the driver that it loaded does.
    driver, device, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    multiprocessor_count = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(count), multiprocessor_count, device)
    if failed:
        raise BackendError(f"the NVIDIA driver does not answer (error {failed}); check nvidia-smi")
    return count.value


@dataclass(frozen=True)
class Kernel:
    """A device function in `source/`, called with the pointers of its inputs, then of its outputs.

    `function` is the call's head with the constants it needs, such as `normed_matvec<T, N_ROWS>`; `sources` are the
    files it needs, in order; `shared` bytes of dynamic shared memory. With `most_threads` the compiler keeps to as many
    registers as a block of them has. `call` is the body where it is more than that one call.
    """

    name: str
    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    shared: int = 0
    most_threads: int = 0
    call: str = ""

    def __call__(
        self,
        inputs: Sequence[mx.array],
        outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
        *,
        blocks: int,
        threads: int,
        **constants: Constant,
    ) -> list[mx.array]:
        """Run `blocks` of `threads`; inputs are made contiguous, outputs are (shape, type).

        Inputs that a kernel writes to (rings) must be contiguous already, or the writes are lost in a copy.
        """
        return launch(self, inputs, outputs, blocks, threads, constants)

    @property
    def body(self) -> str:
        """The kernel's whole body."""
        return self.call or f"{self.function}({', '.join(self.inputs + self.outputs)});"

    @property
    def header(self) -> str:
        """All that stands before it."""
        return "".join(source(name) for name in self.sources) + (
            _BOUNDED % self.most_threads if self.most_threads else ""
        )


# MLX writes the kernel's signature, and knows no bounds: the word before it is made to say them.
_BOUNDED = """
#ifndef EMULATED
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(%d, 1)
#endif
"""


@cache
def source(name: str) -> str:
    """A file of `source/`."""
    return files("personaplex.cuda").joinpath("source", name).read_text(encoding="utf-8")


def declared(constants: Mapping[str, Constant]) -> str:
    """Numbers and types as C++ declares them."""

    def line(name: str, value: Constant) -> str:
        if isinstance(value, mx.Dtype):
            return f"using {name} = {CUDA_TYPES[value]};\n"
        kind, text = ("bool", str(value).lower()) if isinstance(value, bool) else ("int", str(value))
        return f"constexpr {kind} {name} = {text};\n"

    return "".join(line(name, value) for name, value in constants.items())


@cache
def _built(kernel: Kernel, constants: tuple[tuple[str, Constant], ...], types: tuple[mx.Dtype, ...]) -> Any:
    # MLX would make the constants part of the kernel's name, which no minus sign survives.
    body = declared(dict(constants)) + kernel.body
    # A kernel that was built is found by its name, of which the types of what it is given are no part in every version.
    text = hashlib.sha256((kernel.header + body + str(types)).encode()).hexdigest()[:12]
    return mx.fast.cuda_kernel(
        name=f"{kernel.name}_{text}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        header=kernel.header,
        source=body,
        shared_memory=kernel.shared,
    )


def on_device(
    kernel: Kernel,
    inputs: Sequence[mx.array],
    outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    blocks: int,
    threads: int,
    constants: Mapping[str, Constant],
) -> list[mx.array]:
    """Launch a kernel on the card."""
    return cast(
        "list[mx.array]",
        _built(
            kernel, tuple(constants.items()), (*(array.dtype for array in inputs), *(dtype for _, dtype in outputs))
        )(
            inputs=list(inputs),
            output_shapes=[shape for shape, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
            grid=(blocks * threads, 1, 1),
            threadgroup=(threads, 1, 1),
        ),
    )


launch: Callable[..., list[mx.array]] = on_device
"""How kernels are run; the tests put their emulator here."""
