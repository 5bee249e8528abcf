"""Choosing between two states, slot by slot, in one kernel."""

from __future__ import annotations

import mlx.core as mx
import pytest

from personaplex.cuda import kernel as kernels
from personaplex.cuda.slots import choose
from personaplex.nn.state import advance_active, arrays
from tests.cuda.emulator import emulate, fewer


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "launch", emulate)
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: 1)


def leaves(sign: int) -> list[mx.array]:
    """Rows of 16 bytes and of 4, of 3 bytes; every type that a state has."""
    floats = sign * mx.arange(3 * 5 * 8).astype(mx.float32).reshape(3, 5, 8)
    return [
        floats,
        floats[:, 0, :3] * 2,
        floats[:, 1, :1].astype(mx.int32),
        (floats[:, 2, :3] > 0),
        floats[:, 3, :2].astype(mx.bfloat16),
        floats[:, 4, 0].astype(mx.uint32),
    ]


@pytest.mark.parametrize("active", [[True, False, True], [False, False, False], [True, True, True]])
def test_each_slot_has_the_state_it_should(active: list[bool]) -> None:
    after, before = leaves(1), leaves(-1)
    mx.eval(after, before)
    chosen = choose(mx.array(active), after, before)
    for new, old, found in zip(after, before, chosen, strict=True):
        assert (found.shape, found.dtype) == (new.shape, new.dtype)
        for slot, on in enumerate(active):
            assert mx.array_equal(found[slot], (new if on else old)[slot])


def test_a_state_is_chosen_as_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves that are the same stay the same array, and the order of the tree is kept."""
    (same, *after), (_, *before) = leaves(1), leaves(-1)
    active = mx.array([False, True, True])
    found = advance_active(active, {"same": same, "of": tuple(before)}, {"same": same, "of": tuple(after)})
    monkeypatch.setattr(kernels, "launch", kernels.on_device)
    expected = advance_active(active, {"same": same, "of": tuple(before)}, {"same": same, "of": tuple(after)})
    assert found["same"] is same
    assert all(mx.array_equal(one, other) for one, other in zip(arrays(found), arrays(expected), strict=True))
