"""Teaching a residual quantiser: centroids follow a moving mean of what falls to them (van den Oord et al. 2017).

Gradients pass straight through; centroids have none. They are kept as running sums and counts, `Books`, the state that
a training step takes and returns.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from personaplex.train.team import Team

DECAY = 0.99
"""Of the moving means, per step."""

DEAD = 0.05
"""A centroid with less than this share of the mean use is put somewhere else."""


ALONE = Team()


class Books(NamedTuple):
    """The codebooks of one branch: `sums` [n, bins, dim] and `usage` [n, bins]."""

    sums: mx.array
    usage: mx.array

    @property
    def centroids(self) -> mx.array:
        """[n, bins, dim]."""
        return self.sums / mx.maximum(self.usage, 1e-5)[..., None]


class Quantised(NamedTuple):
    """What a branch makes of vectors [N, dim]: the sum of centroids [N, dim] (straight through), the codes [N, n], the
    mean squared distance to each chosen centroid, and the books moved by one step."""

    vectors: mx.array
    codes: mx.array
    commitment: mx.array
    books: Books


def quantise(
    vectors: mx.array, books: Books, kept: mx.array, restart: mx.array, key: mx.array, team: Team = ALONE
) -> Quantised:
    """Quantise vectors [N, dim] with the first `kept` [N] of the books.

    Where `restart` [] is 1, centroids that are hardly used are replaced by vectors drawn with `key`. The books move by
    what the whole team's vectors chose.
    """
    residual = vectors
    total, commitment = mx.zeros_like(vectors), mx.array(0.0)
    codes, sums, usage = [], [], []
    for k, table in enumerate(books.centroids):
        fixed = mx.stop_gradient(residual)
        code = nearest(fixed, table)
        chosen = table[code]
        commitment = commitment + mx.square(residual - chosen).mean()
        key, own = mx.random.split(key)
        moved = _follow(books.sums[k], books.usage[k], fixed, code, restart, own, team)
        sums.append(moved[0])
        usage.append(moved[1])
        total = total + mx.where((k < kept)[:, None], chosen, 0)
        residual = residual - chosen
        codes.append(code)
    straight = vectors + mx.stop_gradient(total - vectors)
    books = Books(mx.stack(sums), mx.stack(usage))
    return Quantised(straight, mx.stack(codes, axis=-1), commitment / len(codes), books)


def nearest(vectors: mx.array, table: mx.array) -> mx.array:
    """vectors [N, dim] -> the index [N] of the nearest row of `table`, the first on ties."""
    return mx.argmin(mx.square(table).sum(axis=-1) / 2 - vectors @ table.T, axis=-1)


def _totals(vectors: mx.array, code: mx.array, bins: int) -> tuple[mx.array, mx.array]:
    """Sums [bins, dim] and counts [bins] of the vectors of each code."""
    member = (code[:, None] == mx.arange(bins)).astype(vectors.dtype)
    return member.T @ vectors, member.sum(axis=0)


def _follow(
    sums: mx.array,
    usage: mx.array,
    vectors: mx.array,
    code: mx.array,
    restart: mx.array,
    key: mx.array,
    team: Team,
) -> tuple[mx.array, mx.array]:
    total, count = _totals(vectors, code, usage.shape[0])
    drawn = vectors[mx.random.randint(0, vectors.shape[0], usage.shape, key=key)]
    if team.size > 1:
        everything = team.total(mx.concatenate([total, count[:, None], drawn * (team.rank == 0)], axis=1))
        total, drawn = everything[:, : total.shape[1]], everything[:, total.shape[1] + 1 :]
        count = everything[:, total.shape[1]]
    sums, usage = DECAY * sums + (1 - DECAY) * total, DECAY * usage + (1 - DECAY) * count
    mean = usage.mean()
    dead = (usage < DEAD * mean) & (restart > 0)
    return mx.where(dead[:, None], drawn * mean, sums), mx.where(dead, mean, usage)


def k_means(vectors: mx.array, bins: int, key: mx.array, rounds: int = 20) -> Books:
    """One codebook [1, ...] for vectors [N, dim] by Lloyd's algorithm; a centroid left empty is drawn anew."""
    key, own = mx.random.split(key)
    replace = vectors.shape[0] < bins
    first = mx.random.randint(0, vectors.shape[0], (bins,), key=own) if replace else None
    table = vectors[mx.random.permutation(vectors.shape[0], key=own)[:bins] if first is None else first]
    count = mx.ones((bins,))
    for _ in range(rounds):
        total, count = _totals(vectors, nearest(vectors, table), bins)
        key, own = mx.random.split(key)
        drawn = vectors[mx.random.randint(0, vectors.shape[0], (bins,), key=own)]
        table = mx.where((count > 0)[:, None], total / mx.maximum(count, 1)[:, None], drawn)
        mx.eval(table, count)
    # Counts as if of an average step, and none so small that it would be restarted at once.
    usage = mx.maximum(count / count.mean(), 2 * DEAD)
    return Books((table * usage[:, None])[None], usage[None])


def residual_k_means(vectors: mx.array, n_books: int, bins: int, key: mx.array) -> Books:
    """Codebooks for vectors [N, dim], each made for what the one before leaves over."""
    made = []
    for _ in range(n_books):
        key, own = mx.random.split(key)
        book = k_means(vectors, bins, own)
        table = book.centroids[0]
        vectors = vectors - table[nearest(vectors, table)]
        made.append(book)
    return Books(mx.concatenate([b.sums for b in made]), mx.concatenate([b.usage for b in made]))


def perplexity(codes: mx.array, bins: int) -> mx.array:
    """How many codes are in use: the exponential of the entropy of codes [N]."""
    share = (codes[:, None] == mx.arange(bins)).mean(axis=0)
    return mx.exp(-(share * mx.log(share + 1e-9)).sum())
