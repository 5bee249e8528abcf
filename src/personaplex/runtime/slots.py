"""Who may use which row of the batched state: fixed slots, leased and released."""

from __future__ import annotations

from typing import NamedTuple

from personaplex.errors import Busy


class Lease(NamedTuple):
    """The right to use `slot` until it is released; the next lease of the slot has another `epoch`."""

    slot: int
    epoch: int


class SlotTable:
    """`n_slots` seats. Not for several threads at once."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self._epochs = [0] * n_slots
        self._taken = [False] * n_slots

    @property
    def in_use(self) -> int:
        """Slots that are leased now."""
        return sum(self._taken)

    def lease(self) -> Lease:
        """Take the first free slot. Raises Busy when there is none."""
        if all(self._taken):
            raise Busy(self.in_use, self.n_slots)
        slot = self._taken.index(False)
        self._taken[slot] = True
        return Lease(slot, self._epochs[slot])

    def holds(self, lease: Lease) -> bool:
        """Whether `lease` still is the right to its slot."""
        return self._taken[lease.slot] and self._epochs[lease.slot] == lease.epoch

    def release(self, lease: Lease) -> bool:
        """Give the slot back; False when that had happened already."""
        if not self.holds(lease):
            return False
        self._taken[lease.slot] = False
        self._epochs[lease.slot] += 1
        return True
