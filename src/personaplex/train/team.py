"""Several processes that train one model, each on its own device and its share of every batch.

`mlx.launch -n 4 personaplex train …` starts them; MLX's distributed layer (NCCL between CUDA cards, sockets elsewhere)
adds up what they found. Each then takes the same step from the same state, so nobody has to send weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from personaplex.errors import TrainingError
from personaplex.train.adamw import Arrays

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Who trains together: this process is number `rank` of `size`."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> Team:
        """The team that the launcher's environment describes; alone without one.

        Raises TrainingError when the others cannot be reached.
        """
        if "MLX_RANK" not in os.environ:
            return cls()
        backend = "nccl" if "NCCL_HOST_IP" in os.environ else "any"
        try:
            group = mx.distributed.init(strict=True, backend=backend)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"the processes that train together did not find each other: {error}") from error
        return cls(group.rank(), group.size(), group)

    def mean(self, arrays: Arrays) -> Arrays:
        """The mean over the team of each of the arrays, in a few large messages."""
        if self.size == 1:
            return arrays
        # MLX takes the dots in the names for a tree, and gives one back.
        return dict(tree_flatten(nn.average_gradients(arrays, self.group)))

    def total(self, array: mx.array) -> mx.array:
        """The sum over the team."""
        return mx.distributed.all_sum(array, group=self.group) if self.size > 1 else array

    def first(self, array: mx.array) -> mx.array:
        """The first process's array, in all of them."""
        return self.total(array if self.rank == 0 else mx.zeros_like(array))

    def any(self, here: bool) -> bool:
        """Whether it is so in one of the team; waits for all of them."""
        return bool(self.total(mx.array(here, mx.int32)).item()) if self.size > 1 else here

    def share(self, size: int) -> int:
        """This process's part of `size`. Raises TrainingError when it cannot be parted evenly."""
        if size % self.size:
            raise TrainingError(f"a batch of {size} cannot be parted among {self.size} processes")
        return size // self.size

    def deal(self, make: Callable[[], Callable[[int], T]]) -> Callable[[], Callable[[int], T]]:
        """Of a source of numbered things, those that fall to this process."""
        return _Dealt(make, self.rank, self.size)


@dataclass(frozen=True)
class _Dealt:
    """Without the group, which stays in its process; see `feed`."""

    make: Callable[[], Callable[[int], Any]]
    rank: int
    size: int

    def __call__(self) -> Callable[[int], Any]:
        made, rank, size = self.make(), self.rank, self.size
        return lambda step: made(step * size + rank)
