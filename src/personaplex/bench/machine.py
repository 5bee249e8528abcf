"""What a number was measured on."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from personaplex import __version__
from personaplex.accelerator import blas


def describe_machine() -> dict[str, object]:
    """Processor, memory, system, MLX device and BLAS: enough to compare a number with another."""
    device = mx.default_device()
    about: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "device": str(device.type).split(".")[-1],
        "blas": Path(blas.library).name if blas.library else None,
    }
    if device.type == mx.DeviceType.gpu:
        about["gpu"] = mx.device_info().get("device_name")
        about["gpu_memory_gib"] = _gib(mx.device_info())
    if mx.cuda.is_available():
        about |= _nvidia()
    return about


def name() -> str:
    """The machine in a few words that fit into a file's name: its GPU, or its processor."""
    about = describe_machine()
    words = re.findall(r"[a-z0-9]+", str(about.get("gpu") or about["cpu"]).lower())
    return "-".join(word for word in words if word not in {"r", "tm", "cpu", "processor"}) or "unknown"


def _gib(about: Mapping[str, object]) -> float | None:
    found = about.get("total_memory") or about.get("memory_size")
    return round(found / 2**30, 1) if isinstance(found, int) else None


def _nvidia() -> dict[str, object]:
    """The driver, and the newest CUDA it serves; nothing where it does not say."""
    about: dict[str, object] = {}
    with suppress(OSError, subprocess.CalledProcessError, IndexError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
        about["driver"] = told.splitlines()[0].strip()
    with suppress(OSError, AttributeError):
        version_of_cuda = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version_of_cuda)) == 0:
            about["cuda"] = f"{version_of_cuda.value // 1000}.{version_of_cuda.value % 1000 // 10}"
    return about


def mlx_version() -> str:
    """The version of MLX that is loaded."""
    return version("mlx")


def commit() -> str:
    """The checkout's commit, `+` if it has changes; what PERSONAPLEX_COMMIT says in a copy that has no history; the
    package's version when it is no checkout.
    """
    root = Path(__file__).parents[3]
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PERSONAPLEX_COMMIT") or f"version {__version__}"


def root() -> Path:
    """The checkout, or where the program was called if it is none."""
    found = Path(__file__).parents[3]
    return found if (found / ".git").exists() else Path.cwd()


def _git(root: Path, *arguments: str) -> str:
    if not (root / ".git").exists():
        raise OSError("not a checkout")
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
