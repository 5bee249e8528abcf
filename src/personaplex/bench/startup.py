"""From starting the program to its first sound: importing, loading, reading a prompt, the first frame.

Weights come from the page cache: the files are read once before. Then loading is bound by how fast pages are copied to
where the model computes (7B in bfloat16: 15.4 GB are used of 16.7), and the rest by kernels that are built when they
are first called. What was built is kept: the first start here finds an empty folder for it, the second a filled one.
`total` is from the start of the process to 80 ms of sound on the host. Random models are made and not read, which their
rows say; `scripts/random_checkpoint.py` writes one that can be read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from personaplex.bench.report import Row
from personaplex.bench.wanted import Wanted
from personaplex.bench.weights import RANDOM, config_of
from personaplex.checkpoint.hub import resolve
from personaplex.errors import BackendError

CHILD = "personaplex.bench.first_frame"
_AT_ONCE = 1 << 24
_LONGEST = 600.0


def run(wanted: Wanted) -> Iterator[Row]:
    """Rows by stage, for each precision with an empty and a filled kernel cache; `frames` starts with the latter."""
    if wanted.name.startswith(RANDOM):
        config_of(wanted.name.removeprefix(RANDOM))  # refused here, not in every start
    else:
        _into_page_cache(resolve(wanted.name))
    for bits in wanted.every_bits:
        with tempfile.TemporaryDirectory() as cache:
            yield from _rows(wanted, bits, Path(cache), "empty", 1)
            yield from _rows(wanted, bits, Path(cache), "filled", wanted.n_frames(1, 1))


def _into_page_cache(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(_AT_ONCE):
                pass


def _rows(wanted: Wanted, bits: int | None, cache: Path, kernel_cache: str, times: int) -> Iterator[Row]:
    starts = [_start(wanted, bits, cache) for _ in range(times)]
    about: dict[str, object] = {
        "weights": "as stored" if bits is None else bits,
        "kernel_cache": kernel_cache,
        "made": wanted.name.startswith(RANDOM),
    }
    for stage in starts[0]:
        yield Row(stage, [start[stage] for start in starts], about)


def _start(wanted: Wanted, bits: int | None, cache: Path) -> dict[str, float]:
    """Start the program once: milliseconds of each stage, then `total`."""
    # MLX's folder for what it builds, the driver's, and ours.
    folders = {"MLX_PTX_CACHE_DIR": "mlx", "CUDA_CACHE_PATH": "driver", "PERSONAPLEX_CACHE": "personaplex"}
    environment = os.environ | {name: str(cache / folder) for name, folder in folders.items()}
    command = [sys.executable, "-m", CHILD, wanted.name, str(bits or 0), json.dumps(wanted.compiled)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, repr(began)], env=environment, capture_output=True, text=True, timeout=_LONGEST, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise BackendError(f"the program did not come to its first frame: {said[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
