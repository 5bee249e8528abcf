"""The quantiser's kernels against MLX's own operations."""

from __future__ import annotations

import mlx.core as mx
import pytest

from personaplex.config import QuantizerConfig
from personaplex.cuda.quantizer import decode, encode
from personaplex.models.rvq import ResidualBranch, SplitQuantizer
from tests.conftest import peak_error
from tests.cuda.emulator import SLACK, emulate, fewer


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.launch", emulate)
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: 5)


def noise(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def quantizer(dim: int, bins: int, n_codebooks: int, width: int = 24) -> SplitQuantizer:
    config = QuantizerConfig(dim, n_codebooks, bins, width, width)
    made = SplitQuantizer(config, n_codebooks)
    for branch in branches(made):
        branch.centroids = noise(*branch.centroids.shape)
        branch.input_proj.weight = noise(dim, width)
        branch.output_proj.weight = noise(width, dim)
    made.prepare()
    made.train()  # the stock path
    return made


def branches(made: SplitQuantizer) -> tuple[ResidualBranch, ResidualBranch]:
    return made.semantic, made.acoustic


def codes_of(made: SplitQuantizer, latents: mx.array, warps: int) -> mx.array:
    centroids = [branch.centroids for branch in branches(made)]
    energies = [mx.square(table).sum(axis=-1) / 2 for table in centroids]
    return encode(latents, [branch.input_proj.weight for branch in branches(made)], centroids, energies, warps=warps)


@pytest.mark.parametrize(
    ("dim", "bins", "n_codebooks", "n_rows", "warps"),
    [
        (16, 37, 4, 1, 4),  # all warps share the row; the last block's share is smaller
        (128, 16, 8, 3, 4),  # one warp each, one idle; vectors read by fours
        (8, 64, 2, 9, 2),  # rows in turns; only one acoustic table
        (40, 3, 3, 2, 2),  # blocks without centroids
    ],
)
def test_codes_are_the_nearest_centroids(dim: int, bins: int, n_codebooks: int, n_rows: int, warps: int) -> None:
    made = quantizer(dim, bins, n_codebooks)
    latents = noise(n_rows, 24)
    expected = made.encode(latents[None])[0]
    codes = codes_of(made, latents, warps)
    assert codes.dtype == mx.int32 and codes.tolist() == expected.tolist()


def test_the_first_of_equal_centroids() -> None:
    made = quantizer(8, 20, 3)
    for branch in branches(made):
        # Every centroid stands twice, and the two lie in different blocks and in different warps.
        branch.centroids = mx.concatenate([branch.centroids[:, :10]] * 2, axis=1)
    made.prepare()
    latents = noise(6, 24)
    codes = codes_of(made, latents, 2)
    assert codes.max() < 10
    assert codes.tolist() == made.encode(latents[None])[0].tolist()


@pytest.mark.parametrize(("dim", "n_codes", "n_rows", "columns"), [(16, 4, 1, None), (128, 2, 3, 4), (8, 1, 9, None)])
def test_codes_to_latents(dim: int, n_codes: int, n_rows: int, columns: int | None) -> None:
    """All codes, or the first of them."""
    made = quantizer(dim, 32, 4)
    codes = mx.random.randint(0, 32, (n_rows, n_codes), key=mx.random.key(dim)).astype(mx.int32)
    centroids = [branch.centroids for branch in branches(made)]
    out = [branch.output_proj.weight for branch in branches(made)]
    latents = decode(codes, centroids, out, columns=columns, warps=2)
    assert peak_error(latents, made.decode(codes[None])[0]) < SLACK * 2e-6
