"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
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
        "blas": blas.library,
    }
    if device.type == mx.DeviceType.gpu:
        about["gpu"] = mx.device_info().get("device_name")
    return about


def mlx_version() -> str:
    """The version of MLX that is loaded."""
    return version("mlx")


def commit() -> str:
    """The checkout's commit, `+` if it has changes; the package's version when it is no checkout."""
    root = Path(__file__).parents[3]
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"


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
