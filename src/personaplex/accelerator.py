"""What MLX needs before it is loaded: exact float32 and short graphs with CUDA, and a fast BLAS on a Linux CPU.

MLX's Linux CPU wheel carries the reference BLAS: one thread, no vector code. A library that exports the same
symbols and is loaded first, globally, is the one the dynamic linker binds: float32 matmul and convolution become
many times faster (`PERSONAPLEX_BLAS=none personaplex bench codec` shows it without). macOS uses Accelerate and CUDA
its own libraries; there nothing is loaded. This module must not import MLX.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from personaplex.errors import BackendError

HOW_TO_GET_ONE = (
    "MLX runs here with its slow reference BLAS: `apt install libopenblas0` (or your system's OpenBLAS package)"
    + (" or `pip install 'personaplex-mlx[mkl]'`" if platform.machine() == "x86_64" else "")
    + " makes it many times faster"
)
IMPORTED_TOO_EARLY = (
    "mlx was imported before personaplex, so MLX keeps its slow reference BLAS; "
    "put `import personaplex` before `import mlx`"
)


FRAME_OPS = "6"
"""Operations of one of MLX's CUDA graphs, where frames are computed; training keeps MLX's own number."""


@dataclass(frozen=True)
class Blas:
    """What this process uses: no `library` where none was loaded; `advice` then says what to do, if anything."""

    library: str | None
    advice: str | None = None


def load() -> Blas:
    """Load a fast BLAS if MLX here is the Linux CPU build; cheap, and harmless to call twice.

    The environment variable PERSONAPLEX_BLAS names a library to use instead (`none` for none at all).
    """
    # With CUDA, MLX multiplies float32 in TF32 (10 bits) unless told otherwise before it is loaded; here float32 means
    # float32: only the codec uses it, and its codes must be the reference's.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    # MLX's graphs end after so many ops or so many megabytes of inputs; a 7B's weights would cut one after each. A
    # frame of one caller is 66 ops: in short graphs the card begins while the next are still being made.
    if _mlx_has("mlx_cuda_*.libs"):
        os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "1000000")
        if os.environ.get("PERSONAPLEX_KERNELS") != "stock":
            os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", FRAME_OPS)
    if not _mlx_has("mlx_cpu.libs"):
        return Blas(None)
    wish = os.environ.get("PERSONAPLEX_BLAS")
    if wish == "none":
        return Blas(None)
    if "mlx.core" in sys.modules:
        return Blas(None, IMPORTED_TOO_EARLY)
    for candidate in [wish] if wish else _candidates():
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return Blas(candidate)
    return Blas(None, f"PERSONAPLEX_BLAS={wish} cannot be loaded" if wish else HOW_TO_GET_ONE)


def _mlx_has(libraries: str) -> bool:
    # A Linux wheel with a backend brings its libraries in a folder beside the package.
    return sys.platform == "linux" and any(any(root.parent.glob(libraries)) for root in _mlx_roots())


def _mlx_roots() -> list[Path]:
    spec = importlib.util.find_spec("mlx")
    return [Path(root) for root in spec.submodule_search_locations or []] if spec else []


def explain(error: ImportError) -> ImportError | BackendError:
    """What an import that failed means: MLX without a backend gets a BackendError, anything else is passed on."""
    if not _mlx_roots():
        return BackendError("MLX is not installed; run `pip install personaplex-mlx`")
    if "libmlx" in str(error) or (error.name or "").startswith("mlx"):
        return BackendError(
            f"MLX is installed without a backend that loads here ({error}); on Linux run "
            "`pip install 'personaplex-mlx[cpu]'` or, for an NVIDIA card, `pip install 'personaplex-mlx[cuda13]'`"
        )
    return error


def _candidates() -> list[str]:
    # The `mkl` wheel puts its single dynamic library into the environment's lib folder. Who has installed it wants it:
    # for one or two rows, which is what a frame is, it does not copy the weights first, as OpenBLAS does.
    mkl = [str(path) for path in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))]
    return [*mkl, "libopenblas.so.0", "libopenblas.so"]


blas = load()
