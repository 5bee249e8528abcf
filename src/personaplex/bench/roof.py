"""What this machine can do at most: bytes copied and operations multiplied per second, measured, not looked up.

A step must read its weights and rings and do its arithmetic; the longer of the two is its floor. The bandwidth is that
of a copy (what is read and what is written both count), the rate that of a large square product in the type that the
model computes in. Neither is a peak of a data sheet: it is what programs get here.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np

from personaplex.bench.demand import Demand
from personaplex.checkpoint.load import default_dtype

REPETITIONS = 5


@dataclass(frozen=True)
class Roof:
    """Bytes copied per second, and operations (a multiplication and an addition are two) per second."""

    bytes_per_second: float
    operations_per_second: float

    def floor_ms(self, demand: Demand) -> float:
        """The least that it takes: whichever of memory and arithmetic takes longer, as if the other were free."""
        return 1000 * max(demand.n_bytes / self.bytes_per_second, demand.n_operations / self.operations_per_second)

    def as_json(self) -> dict[str, float]:
        """In GB/s and TFLOP/s."""
        return {
            "copy_gb_per_s": round(self.bytes_per_second / 1e9, 1),
            "matmul_tflop_per_s": round(self.operations_per_second / 1e12, 3),
        }


@cache
def roof() -> Roof:
    """This machine's, measured once a run."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return Roof(_copy_on_gpu() if on_gpu else _copy_on_cpu(), _matmul(4096 if on_gpu else 1024))


def _copy_on_gpu(n_bytes: int = 1 << 30, times: int = 10) -> float:
    """One kernel reads and writes all of it; many in one evaluation, so that the host is not what is measured."""

    def copies() -> None:
        x = mx.ones((n_bytes // 4,), mx.float32)
        mx.eval(x)
        began = time.perf_counter()
        for _ in range(times):
            x = x + 1.0
        mx.eval(x)
        seconds.append(time.perf_counter() - began)

    seconds: list[float] = []
    for _ in range(REPETITIONS):
        copies()
    return 2 * n_bytes * times / statistics.median(seconds)


def _copy_on_cpu(n_bytes: int = 1 << 27) -> float:
    """All cores copy a part each: numpy lets go of Python meanwhile."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [(np.ones(n_bytes // cores, np.uint8), np.ones(n_bytes // cores, np.uint8)) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        seconds = _median(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))
    return 2 * cores * (n_bytes // cores) / seconds


def _matmul(n: int, times: int = 4) -> float:
    x = mx.full((n, n), 1 / n, default_dtype())

    def products() -> None:
        y = x
        for _ in range(times):
            y = y @ x
        mx.eval(y)

    return 2 * n**3 * times / _median(products)


def _median(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
