"""What was asked of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from personaplex.bench.weights import default_model
from personaplex.cuda.kernel import enabled


@dataclass(frozen=True)
class Wanted:
    """A model (None: random weights), how often, how many bits of weights and of keys, and what is swept over.

    `context` is None for quarters of the model's own window, `frames` None for what suits the machine.
    """

    model: str | None = None
    frames: int | None = None
    compiled: bool | None = None
    bits: tuple[int, ...] = ()
    kv_bits: tuple[int, ...] = (16,)
    context: tuple[int, ...] | None = None
    sessions: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model or default_model()

    def n_frames(self, gpu: int, cpu: int) -> int:
        """Repetitions: as asked for, or what suits the machine."""
        return self.frames or (cpu if mx.default_device().type == mx.DeviceType.cpu else gpu)

    @property
    def every_bits(self) -> tuple[int | None, ...]:
        """Precisions of the weights, None for as they are stored."""
        return self.bits or (None,)


def kernels() -> str:
    """Which path is measured: this package's CUDA kernels, or MLX's own operations."""
    return "own" if enabled() else "stock"
