"""A CUDA kernel, how it comes to be built, and where kernels are used at all."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import mlx.core as mx

from personaplex.cuda import nvrtc
from personaplex.cuda.build import Builder, Code
from personaplex.errors import BackendError, UsageError
from personaplex.files import cache_folder

P = ParamSpec("P")
R = TypeVar("R")

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
    """Whether this process computes on an NVIDIA card that has what kernels need: one from 2020 or later.

    Asked once: a default device that is set later changes nothing.
    """
    on_gpu = bool(mx.cuda.is_available()) and mx.default_device().type == mx.DeviceType.gpu
    return on_gpu and _capability() >= (8, 0)


def enabled(family: str = "") -> bool:
    """Whether kernels are to be used: on an NVIDIA card, unless PERSONAPLEX_KERNELS is `stock`.

    Then MLX's own operations compute everything. With commas it names families to leave out: `auto,no-stack,no-tiles`.
    Raises UsageError for other words.
    """
    wish = _wish(os.environ.get("PERSONAPLEX_KERNELS") or "auto")
    somewhere = launch is not on_device or (on_card() and "stock" not in wish)
    return somewhere and (not family or f"no-{family}" not in wish)


@cache
def _wish(text: str) -> frozenset[str]:
    words = frozenset(text.split(","))
    expected = "expected stock, or auto with no-stack or no-tiles behind it, commas between them"
    if unknown := words - {"auto", "stock", "no-stack", "no-tiles"}:
        raise UsageError(f"PERSONAPLEX_KERNELS is {text!r}, of which {sorted(unknown)[0]!r} means nothing; {expected}")
    if "stock" in words and len(words) > 1:
        raise UsageError(f"PERSONAPLEX_KERNELS is {text!r}, of which stock leaves nothing to the rest; {expected}")
    return words


@cache
def multiprocessors() -> int:
    """Multiprocessors of the card: as many blocks run at once at least, and may wait for each other."""
    return _attribute(16)  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


@cache
def shared_memory() -> int:
    """Bytes that one block may have."""
    return _attribute(97)  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


@cache
def _capability() -> tuple[int, int]:
    return _attribute(75), _attribute(76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def _attribute(which: int) -> int:
    # MLX does not tell; the driver that it loaded does.
    driver, device, value = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    if failed:
        raise BackendError(f"the NVIDIA driver does not answer (error {failed}); check nvidia-smi")
    return value.value


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
        if (kinds := _collected.get()) is not None:
            kinds[_kind(self, inputs, outputs, constants)] = None
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]
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


# MLX writes a kernel's signature where it builds it, and knows no bounds: the word before it is made to say them.
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


class Kind(NamedTuple):
    """A kernel as it is built: for these constants, and types of its inputs and outputs."""

    kernel: Kernel
    constants: tuple[tuple[str, Constant], ...]
    types: tuple[mx.Dtype, ...]


def _kind(
    kernel: Kernel,
    inputs: Sequence[mx.array],
    outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    constants: Mapping[str, Constant],
) -> Kind:
    types = (*(array.dtype for array in inputs), *(dtype for _, dtype in outputs))
    return Kind(kernel, tuple(constants.items()), types)


_PRELUDE = """#include <cuda_bf16.h>
#include <cuda_fp16.h>
using int8_t = signed char;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
"""


@cache
def code(kind: Kind) -> Code:
    """A kernel's whole CUDA source, and its name, which says all that tells it from others.

    MLX finds a kernel that it has loaded by its name alone, and asks for its shared memory when it loads it.
    """
    kernel = kind.kernel
    names = (*(f"const {CUDA_TYPES[of]}* {name}" for of, name in zip(kind.types, kernel.inputs, strict=False)),)
    made = kind.types[len(kernel.inputs) :]
    names += (*(f"{CUDA_TYPES[of]}* {name}" for of, name in zip(made, kernel.outputs, strict=True)),)
    head = ",\n    ".join(names)
    rest = f"(\n    {head}) {{\n{declared(dict(kind.constants))}{kernel.body}\n}}\n"
    text = _PRELUDE + kernel.header
    digest = hashlib.sha256(f"{text}\0{rest}\0{kernel.shared}".encode()).hexdigest()[:16]
    name = f"{kernel.name}_{digest}"
    return Code(name, f'{text}extern "C" __global__ void {name}{rest}')


@cache
def builder() -> Builder | None:
    """What builds kernels for this process's card; None where no compiler is found, and MLX is to build them."""
    compiler = nvrtc.find()
    target = nvrtc.target(compiler.architectures, _capability()) if compiler else None
    if compiler is None or target is None:
        return None
    try:
        folder = cache_folder() / "kernels"
    except RuntimeError:  # nobody is at home
        folder = None
    return Builder(compiler, target, folder)


_collected: ContextVar[dict[Kind, None] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting() -> Iterator[dict[Kind, None]]:
    """Within this no kernel is launched: each gives zeros, and which ones were asked for is collected, in order.

    Whoever computes something here and forgets it without evaluating it has changed nothing.
    """
    kinds: dict[Kind, None] = {}
    token = _collected.set(kinds)
    try:
        yield kinds
    finally:
        _collected.reset(token)


def build(run: Callable[[], object]) -> bool:
    """Build all kernels that `run` would launch, several at a time; whether any are used here.

    It computes nothing, and must forget what it makes. Raises BackendError for a kernel that does not build.
    """
    if launch is not on_device or not enabled() or not (builds := builder()):
        return False
    with collecting() as kinds:
        run()
    builds.all(map(code, kinds))
    return True


def built_before(step: Callable[P, R], run: Callable[P, R]) -> Callable[P, R]:
    """`run`, before whose first call all kernels of `step` are built, several at a time; both compute the same.

    What MLX has compiled cannot be asked, hence the two. The first argument's shape says whether a call is like one
    before; nothing is done where kernels are not used. Raises BackendError for a kernel that does not build.
    """
    known: set[tuple[int, ...]] = set()

    def prepared(*args: P.args, **kwargs: P.kwargs) -> R:
        form = cast("mx.array", args[0]).shape
        if form not in known and build(lambda: step(*args, **kwargs)):
            known.add(form)
        return run(*args, **kwargs)

    return prepared


@cache
def _by_mlx(kind: Kind) -> Any:
    """A kernel that MLX builds when it is first called, in each process."""
    kernel = kind.kernel
    # MLX would make the constants part of the kernel's name, which no minus sign survives.
    body = declared(dict(kind.constants)) + kernel.body
    return mx.fast.cuda_kernel(
        name=code(kind).name,
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
    kind = _kind(kernel, inputs, outputs, constants)
    form: dict[str, Any] = {
        "inputs": list(inputs),
        "output_shapes": [shape for shape, _ in outputs],
        "output_dtypes": [dtype for _, dtype in outputs],
        "grid": (blocks * threads, 1, 1),
        "threadgroup": (threads, 1, 1),
    }
    if (builds := builder()) is None:
        return cast("list[mx.array]", _by_mlx(kind)(**form))
    source = code(kind)
    return mx.fast.precompiled_cuda_kernel(
        name=source.name,
        compiled_source=builds(source),
        scalars=[],
        shared_memory=kernel.shared,
        ensure_row_contiguous=True,
        **form,
    )


launch: Callable[..., list[mx.array]] = on_device
"""How kernels are run; the tests put their emulator here."""
