"""Layers of the temporal transformer for one token of one session, several in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import kernel as kernels
from personaplex.cuda.flow import LINE, most_stages, unit_bytes, work_bytes
from personaplex.cuda.kernel import Kernel
from personaplex.cuda.matrix import LayerWeights
from personaplex.cuda.tiles import fits, scale_type

WARPS = 16
SHARES = 4
"""Parts of a head's ring, each read by a block of its own."""
LAYERS = 16
"""Layers of one launch: MLX's part of a launch grows with the arrays that it is given."""


class Shape(NamedTuple):
    """What the kernel is built for."""

    dim: int
    heads: int
    hidden: int
    n_rows: int
    context: int
    period: int


def serves(layer: LayerWeights, shape: Shape) -> bool:
    """Whether the kernel can do layers like this one."""
    maps = (layer.in_proj, layer.out_proj, layer.linear_in, layer.linear_out)
    if len({(packed.bits, scale_type(packed)) for packed in maps}) > 1 or not all(map(fits, maps)):
        return False
    bits, scales = layer.in_proj.bits, scale_type(layer.in_proj)
    _, stages = _room(shape, bits, scales, WARPS, kernels.multiprocessors(), LAYERS)
    return stages >= 2 and shape.dim // shape.heads in (64, 128, 256) and layer.norm1.dtype == mx.bfloat16


_PARTS = ("in", "out", "gate", "down")
_TABLE = 128
"""Bytes of a layer's pointers, which lie in shared memory too."""


def _room(shape: Shape, bits: int, scales: str, warps: int, blocks: int, n_layers: int) -> tuple[int, int]:
    """(bytes that a block works with, units of which a warp's ring has room): `Stack` in the source."""
    head, dim = shape.dim // shape.heads, shape.dim
    maps = ((dim, 3 * dim), (dim, dim), (dim, 2 * shape.hidden), (shape.hidden, dim))
    work = max(*(work_bytes(*sizes, warps, blocks) for sizes in maps), (3 * head + warps * (head + 2)) * 4)
    fixed = -(-(-(-work // 16) * 16 + head * 4) // LINE) * LINE + LINE
    return fixed, most_stages(fixed + n_layers * _TABLE, warps, _unit(bits, scales))


def _unit(bits: int, scales: str) -> int:
    return unit_bytes(bits, 4 if scales == "float" else 2)


@cache
def _kernel(shape: Shape, n_layers: int, bits: int, scales: str, warps: int, blocks: int, shares: int) -> Kernel:
    def of_map(part: str, layer: int) -> list[str]:
        return [f"{part}_{kind}_{layer}" for kind in (("w", "s", "b") if bits < 16 else ("w",))]

    def given(layer: int) -> list[str]:
        maps = [of_map(part, layer) for part in _PARTS]
        return [f"norm1_{layer}", *maps[0], *maps[1], f"norm2_{layer}", *maps[2], *maps[3], f"k_{layer}", f"v_{layer}"]

    def initial(layer: int) -> str:
        fields = []
        for name in given(layer):
            ring = name.startswith(("k_", "v_"))
            fields.append(f"const_cast<__nv_bfloat16*>({name})" if ring else name)
            if "_w_" in name and bits == 16:
                fields += ["nullptr", "nullptr"]
        return "{" + ", ".join(fields) + "}"

    fixed, stages = _room(shape, bits, scales, warps, blocks, n_layers)
    shared = fixed + warps * stages * _unit(bits, scales)
    numbers = (bits, *shape, warps, blocks, shares, stages, scales)
    outputs = ("out", "qkv", "shares", "middle", "hidden", "between")
    layers = "\n  ".join(f"layers[{layer}] = StackLayer<{scales}>{initial(layer)};" for layer in range(n_layers))
    call = f"""using Launch = Stack<{", ".join(map(str, numbers))}>;
static_assert(Launch::BYTES == {shared} && sizeof(StackLayer<{scales}>) == {_TABLE}, "shared memory");
SHARED(StackLayer<{scales}>, layers, {n_layers});
if (threadIdx.x == 0) {{
  {layers}
}}
__syncthreads();
Launch::run(layers, {n_layers}, x, where, counters, {", ".join(outputs)});"""
    inputs = ("x", "where", "counters", *(name for layer in range(n_layers) for name in given(layer)))
    sources = ("warp.cuh", "grid.cuh", "tiles.cuh", "flow.cuh", "parts.cuh", "stack.cuh")
    return Kernel("stack", "stack", inputs, outputs, sources, shared, warps * 32, call)


def step(
    x: mx.array,
    position: mx.array,
    pinned: mx.array | None,
    layers: Sequence[LayerWeights],
    rings: Sequence[tuple[mx.array, mx.array]],
    shape: Shape,
    *,
    warps: int = WARPS,
    shares: int = SHARES,
    layers_per_launch: int = LAYERS,
) -> mx.array:
    """The token x [1, dim] at `position` [1] through all layers -> [1, dim]; its keys and values are written into the
    rings [1, heads, n_rows, head], in place.

    Relies on as many blocks running at once as the card has multiprocessors: they wait for each other.
    """
    # A larger array than the two numbers, or MLX would keep it where the host can reach it, far from the card.
    tokens = [position, mx.zeros((1,), mx.int32) if pinned is None else pinned]
    where = mx.concatenate([*tokens, mx.zeros((14,), mx.int32)])
    # Where blocks count each other; of launches that follow each other, as in depformer.py.
    counters = mx.zeros((64,), mx.uint32)
    bits, scales, head = layers[0].in_proj.bits, scale_type(layers[0].in_proj), shape.dim // shape.heads
    sizes = [(3 * shape.dim,), (shape.heads * shares * (head + 2),), (shape.dim,), (shape.hidden,), (2 * shape.dim,)]
    kinds = [mx.bfloat16, mx.float32, mx.bfloat16, mx.bfloat16, mx.bfloat16]
    outputs = [((1, shape.dim), mx.bfloat16), *zip(sizes, kinds, strict=True)]
    for first in range(0, len(layers), layers_per_launch):
        group = range(first, min(first + layers_per_launch, len(layers)))
        kernel = _kernel(shape, len(group), bits, scales, warps, kernels.multiprocessors(), shares)
        given = [array for i in group for array in (*layers[i].arrays, *rings[i])]
        x = kernel([x, where, counters, *given], outputs, blocks=kernels.multiprocessors(), threads=warps * 32)[0]
    return x
