"""Attention over rings by kernels: as the stock operations, and reading no row that is not seen."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex.cuda import ring as kernels
from personaplex.cuda.ring import Tuning
from personaplex.nn.attention import KV, Attention, Decoding, Ring, empty_ring, open_window
from personaplex.nn.state import arrays
from tests.cuda.emulator import SLACK, emulate

PERIOD = 10000.0


def row_of(position: int, n_rows: int, pinned: int) -> int:
    return position if position < pinned else pinned + (position - pinned) % (n_rows - pinned)


def seen_rows(position: int, n_rows: int, context: int, pinned: int) -> list[int]:
    """Rows that a token at `position` sees besides its own, of a ring that every token before it was written to."""
    holds = {row_of(p, n_rows, pinned): p for p in range(position)}
    return [row for row, p in holds.items() if p > position - context or p < pinned]


def filled(ring: Ring, seed: int, unseen: float, positions: list[int], context: int, pinned: list[int]) -> Ring:
    """Random keys and values where tokens of this call see some, and elsewhere `unseen` (packed: its unit)."""
    slots, heads, n_rows, head = ring.k.shape
    random = np.random.default_rng(seed)
    shown = np.zeros((slots, 1, n_rows, 1), bool)
    for slot, position in enumerate(positions):
        shown[slot, 0, seen_rows(position, n_rows, context, pinned[slot]), 0] = True
    k, v = (mx.array(random.normal(size=(slots, heads, n_rows, head)).astype(np.float32)) for _ in range(2))
    where = mx.array(shown)
    if isinstance(ring, KV):
        return KV(*(mx.where(where, x, unseen).astype(ring.k.dtype) for x in (k, v)))
    rows = mx.broadcast_to(mx.arange(n_rows)[None, None, :, None], (slots, 1, n_rows, 1))
    packed = ring.write(rows, k, v)
    return packed._replace(k_unit=mx.where(where, packed.k_unit, unseen), v_unit=mx.where(where, packed.v_unit, unseen))


CASES: dict[str, tuple[list[int], list[int], int, int]] = {
    "before, at and after the wrap, and long after": ([0, 3, 19, 20, 21, 57], [0] * 6, 20, 1),
    "spare rows": ([0, 11, 23, 24, 40], [0] * 5, 24, 1),
    "pins of different lengths": ([2, 5, 21, 33, 34, 90, 91], [4, 4, 3, 13, 0, 13, 1], 33, 1),
    "two tokens": ([0, 1, 19, 20, 21, 30], [0] * 6, 21, 2),
    "two tokens and spare rows": ([0, 24, 26, 50], [0] * 4, 26, 2),
}
"""Positions and pinned tokens of each slot, rows of the ring, tokens per call; 20 are seen."""

FORMS = {
    "one share": (mx.float32, 16, 8, Tuning(threads=32, rows=1, splits=1)),
    "three shares": (mx.float32, 16, 64, Tuning(threads=64, rows=2, fewest=3, splits=3)),
    "bfloat16": (mx.bfloat16, 16, 64, Tuning(threads=32, rows=4, fewest=8, splits=2)),
    "packed": (mx.float32, 8, 8, Tuning(threads=32, rows=2, fewest=1, splits=4)),
    "packed beside bfloat16": (mx.bfloat16, 8, 32, Tuning(threads=64, rows=2, splits=1)),
}
SOME = ("pins of different lengths", "two tokens")


@pytest.mark.parametrize(
    ("case", "form"), [(case, form) for form in FORMS for case in CASES if form == "one share" or case in SOME]
)
def test_it_attends_and_writes_as_the_stock_operations(case: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    positions, pinned, n_rows, n_tokens = CASES[case]
    dtype, bits, head, tuning = FORMS[form]
    context, heads, slots = 20, 2, len(positions)
    layer = Attention(heads * head, heads)
    empty = empty_ring((slots, heads, n_rows, head), dtype, bits)
    mine, theirs = (filled(empty, 1, unseen, positions, context, pinned) for unseen in (float("nan"), 0.0))
    pins = mx.array(pinned) if any(pinned) else None
    coarse = 0.03 if dtype == mx.bfloat16 else 0.02 if bits == 8 else SLACK * 1e-4
    for call in range(3):
        qkv = mx.random.normal((slots * n_tokens, 3 * heads * head), key=mx.random.key(call)).astype(dtype)
        now = [position + call * n_tokens for position in positions]
        start = mx.array(now)
        plan = (start, n_tokens, n_rows, context, head, PERIOD, pins, dtype)
        expected, theirs = layer.attend(qkv, theirs, open_window(*plan))
        with monkeypatch.context() as patched:
            patched.setattr("personaplex.cuda.kernel.launch", emulate)
            patched.setattr(kernels, "DEFAULT", tuning)
            decoding = open_window(*plan)
            assert isinstance(decoding, Decoding)
            mx.eval(arrays(mine))
            found, after = layer.attend(qkv, mine, decoding)
            assert decoding.after(found).tolist() == [position + n_tokens for position in now]
        assert after is mine
        assert found.dtype == dtype
        assert np.abs(np.array((found - expected).astype(mx.float32))).max() < coarse
        places = [(slot, p + i) for slot, p in enumerate(now) for i in range(n_tokens)]
        for slot, position in places:
            row = row_of(position, n_rows, pinned[slot])
            for one, other in zip(mine, theirs, strict=True):
                written, wanted = (np.array(ring[slot, :, row].astype(mx.float32)) for ring in (one, other))
                assert np.abs(written - wanted).max() <= (1 if one.dtype == mx.int8 else coarse)
