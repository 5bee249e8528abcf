"""How much shared memory the kernels take whose weights come in by copies that run ahead (source/flow.cuh)."""

from __future__ import annotations

from personaplex.cuda import kernel as kernels

LINE = 128
"""Bytes of a weight row in a unit; units and rings lie at whole ones."""
_MOST_STAGES = 8


def unit_bytes(bits: int, scale_bytes: int) -> int:
    """Of a unit: 16 lines, then their groups' scales and biases. `UnitOf` in the source."""
    side = LINE * 8 // bits // 64 * scale_bytes if bits < 16 else 0
    return -(-16 * (LINE + 2 * side) // LINE) * LINE


def work_bytes(columns: int, rows: int, warps: int, blocks: int) -> int:
    """Of a linear map's work. `Map` in parts.cuh."""
    return columns * 2 + columns // 64 * 4 + 128 + warps * -(-rows // 16 // blocks) * 64


def most_stages(fixed: int, warps: int, unit: int) -> int:
    """Units of which each warp's ring has room beside `fixed` bytes; no more than help."""
    return min(_MOST_STAGES, (kernels.shared_memory() - fixed - LINE) // (warps * unit))
