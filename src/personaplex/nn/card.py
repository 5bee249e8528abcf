"""Which operations the kernels for NVIDIA cards compute."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from personaplex.cuda.kernel import enabled


def by_kernels(module: nn.Module, x: mx.array) -> bool:
    """Whether `module` computes x by float32 kernels; they have no gradients, so not while it is trained."""
    return enabled() and not module.training and x.dtype == mx.float32
