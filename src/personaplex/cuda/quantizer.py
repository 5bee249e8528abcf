"""Mimi's quantiser on an NVIDIA card: latents to codes in two kernels, and back in one.

The search is one kernel whose blocks wait for each other after every table. A table must be read by the whole card (one
multiprocessor would take some 20 us for each), so the choice was between eight launches and eight meetings in one;
meetings are the shorter, and cost the host nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.sizes import on_card

MOST_ROWS = 256
"""Latents that are searched for in one call; beyond, products of whole matrices are faster."""
_MOST_TABLES = 32
_COUNTERS = 64

_SOURCES = ("warp.cuh", "grid.cuh", "vector.cuh", "quantizer.cuh")
_PROJECT = Kernel(
    "quantizer_project",
    "project<WARPS>",
    ("latents", "meaning", "sound", "size"),
    ("projected", "best"),
    _SOURCES,
)
_SEARCH = Kernel(
    "quantizer_search",
    "search<DIM, WARPS>",
    ("projected", "meaning", "meaning_energy", "tables", "energies", "best", "size"),
    ("codes",),
    _SOURCES,
)
_RESTORE = Kernel(
    "quantizer_restore",
    "restore<DIM, COLUMNS, WARPS>",
    ("codes", "meaning", "tables", "meaning_out", "sound_out", "size"),
    ("latents",),
    _SOURCES,
)


def searches(n_rows: int, n_tables: int) -> bool:
    """Whether `encode` takes so many latents and acoustic tables."""
    return n_rows <= MOST_ROWS and n_tables <= _MOST_TABLES


def encode(
    latents: mx.array,
    projections: Sequence[mx.array],
    centroids: Sequence[mx.array],
    half_energies: Sequence[mx.array],
    *,
    warps: int = 8,
    most_blocks: int = 128,
) -> mx.array:
    """latents [N, width] -> codes [N, 1 + n] int32, the nearest centroid of what is left, the first index on ties.

    Of each pair the semantic branch's is first: `projections` [dim, width], `centroids` [1 and n, bins, dim] and their
    `half_energies` [1 and n, bins].
    """
    n_rows, width = latents.shape
    n_tables, bins, dim = centroids[1].shape
    n_best = 2 * n_rows * (1 + n_tables)
    project_warps = 4
    projected, best = _PROJECT(
        [latents, *projections, on_card(n_rows, width, dim, n_best)],
        [((2, n_rows, dim), mx.float32), ((n_best + _COUNTERS,), mx.uint32)],
        blocks=math.ceil(2 * dim / project_warps),
        threads=32 * project_warps,
        WARPS=project_warps,
    )
    (codes,) = _SEARCH(
        [
            projected,
            *(centroids[0], half_energies[0], centroids[1], half_energies[1]),
            *(best, on_card(n_rows, bins, n_tables)),
        ],
        [((n_rows, 1 + n_tables), mx.int32)],
        blocks=min(kernels.multiprocessors(), most_blocks),
        threads=32 * warps,
        DIM=dim,
        WARPS=warps,
    )
    return codes


def decode(
    codes: mx.array,
    centroids: Sequence[mx.array],
    projections: Sequence[mx.array],
    *,
    columns: int | None = None,
    warps: int = 4,
) -> mx.array:
    """codes [N, n] int32, semantic first -> latents [N, width]; `projections` [width, dim] of each branch."""
    n_rows, n_codes = codes.shape
    _, bins, dim = centroids[1].shape
    width = projections[0].shape[0]
    if columns is None:
        # Where there are blocks enough, each gathers its sums for more columns.
        columns = 1 if n_rows < 8 else 8
    (latents,) = _RESTORE(
        [codes, *centroids, *projections, on_card(n_rows, bins, n_codes, width)],
        [((n_rows, width), mx.float32)],
        blocks=n_rows * math.ceil(width / (columns * warps)),
        threads=32 * warps,
        DIM=dim,
        COLUMNS=columns,
        WARPS=warps,
    )
    return latents
