"""Mimi's split residual vector quantiser (reference vq.py, core_vq.py).

Two branches read the same latent: the first codebook alone carries meaning ("semantic"), the others refine sound
("acoustic"), each quantising what the one before left over.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from personaplex.config import QuantizerConfig
from personaplex.cuda import quantizer as kernels
from personaplex.nn.card import by_kernels


class ResidualBranch(nn.Module):
    """Projections in and out, and `n_codebooks` tables of centroids [n, bins, dimension].

    `prepare` must be called after the centroids are set: half of a search's work depends on them alone.
    """

    def __init__(self, config: QuantizerConfig, n_codebooks: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(config.input_dimension, config.dimension, bias=False)
        self.output_proj = nn.Linear(config.dimension, config.output_dimension, bias=False)
        self.centroids = mx.zeros((n_codebooks, config.bins, config.dimension))
        self.prepare()

    def prepare(self) -> None:
        """Cut out each table [bins, dimension] and compute |centroid|^2 / 2 [bins]; neither is a parameter."""
        self._tables = list(self.centroids)
        self._half_energy = mx.square(self.centroids).sum(axis=-1) / 2
        self._half_energies = list(self._half_energy)

    def encode(self, latent: mx.array) -> mx.array:
        """latent [B, T, width] -> codes [B, T, n]: nearest centroid of what is left, the first index on ties."""
        residual = self.input_proj(latent).reshape(-1, self.centroids.shape[2])
        codes = []
        for table, half_energy in zip(self._tables, self._half_energies, strict=True):
            # |residual - centroid|^2 / 2 up to a term that all centroids share.
            code = mx.argmin(mx.addmm(half_energy, residual, table.T, alpha=-1), axis=-1)
            # What is left after the last is never asked for, so never computed.
            residual = residual - table[code]
            codes.append(code)
        return mx.stack(codes, axis=-1).astype(mx.int32).reshape(*latent.shape[:-1], -1)

    def decode(self, codes: mx.array) -> mx.array:
        """codes [B, T, n] -> latent [B, T, width]; fewer codes than codebooks are the first of them."""
        return self.output_proj(self._rows(codes).sum(axis=-2))

    def _rows(self, codes: mx.array) -> mx.array:
        """Centroids [..., n, dimension] of codes [..., n], in one look-up."""
        n_codebooks, bins, dimension = self.centroids.shape
        starts = mx.array([table * bins for table in range(codes.shape[-1])], mx.int32)
        return self.centroids.reshape(n_codebooks * bins, dimension)[codes + starts]


class SplitQuantizer(nn.Module):
    """One semantic and `n_codebooks` - 1 acoustic codebooks."""

    def __init__(self, config: QuantizerConfig, n_codebooks: int) -> None:
        super().__init__()
        self.semantic = ResidualBranch(config, 1)
        self.acoustic = ResidualBranch(config, n_codebooks - 1)

    def prepare(self) -> None:
        """Make both branches ready to encode; call it when the centroids have been set."""
        for branch in (self.semantic, self.acoustic):
            branch.prepare()
            # Now, or a compiled step would compute it again in every call.
            mx.eval(branch._half_energy, branch._half_energies)

    def encode(self, latent: mx.array) -> mx.array:
        """latent [B, T, width] -> codes [B, T, K], semantic first."""
        both, rows = (self.semantic, self.acoustic), latent.reshape(-1, latent.shape[-1])
        if by_kernels(self, latent) and kernels.searches(len(rows), len(self.acoustic.centroids)):
            codes = kernels.encode(
                rows,
                [branch.input_proj.weight for branch in both],
                [branch.centroids for branch in both],
                [branch._half_energy for branch in both],
            )
            return codes.reshape(*latent.shape[:-1], -1)
        return mx.concatenate([self.semantic.encode(latent), self.acoustic.encode(latent)], axis=-1)

    def decode(self, codes: mx.array) -> mx.array:
        """codes [B, T, K] -> latent [B, T, width]; fewer codes than codebooks say less, the first ones the most."""
        if by_kernels(self, self.semantic.centroids):
            both, rows = (self.semantic, self.acoustic), codes.reshape(-1, codes.shape[-1]).astype(mx.int32)
            latent = kernels.decode(
                rows, [branch.centroids for branch in both], [branch.output_proj.weight for branch in both]
            )
            return latent.reshape(*codes.shape[:-1], -1)
        meaning = self.semantic.decode(codes[..., :1])
        return meaning + self.acoustic.decode(codes[..., 1:]) if codes.shape[-1] > 1 else meaning
