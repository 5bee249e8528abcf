"""All benchmarks of speed, one after the other, in modest sizes: what a machine is worth for this model.

Each teaches its own theory: `personaplex bench step`, `codec`, `prefill`, `sessions`, `startup`. Rows name theirs in
`bench`. Keep the result with `--save`: `benchmarks/` holds one such file for each machine and day.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx

from personaplex.bench import PARTS
from personaplex.bench.report import Row
from personaplex.bench.wanted import Wanted
from personaplex.errors import PersonaPlexError

GPU_FRAMES, CPU_FRAMES = 500, 20
STARTS, READINGS = 1, 10


def run(wanted: Wanted) -> Iterator[Row]:
    """The rows of every part; one that cannot be measured here says why, and the others go on."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    frames = wanted.n_frames(GPU_FRAMES, CPU_FRAMES)
    sessions = wanted.sessions or ((1, 2) if on_cpu else (1, 8, 32, 64))
    sizes: dict[str, Wanted] = {
        "step": replace(wanted, frames=frames, sessions=None),
        "codec": replace(wanted, frames=frames, sessions=None),
        "prefill": replace(wanted, frames=min(frames, READINGS), sessions=None),
        "sessions": replace(wanted, frames=frames, sessions=sessions),
        "startup": replace(wanted, frames=STARTS, sessions=None),
    }
    for name in PARTS:
        try:
            for row in importlib.import_module(f"personaplex.bench.{name}").run(sizes[name]):
                yield Row(row.name, row.ms, {"bench": name} | row.extra)
        except (PersonaPlexError, RuntimeError) as error:
            yield Row(name, [], {"bench": name, "skipped": str(error)})
