"""Kernels in these tests run on the emulator: a card of two multiprocessors, unless a test says otherwise.

Where there is a card they run on it, with its own number of multiprocessors and the sizes that are shipped. There
`kernel.launch` decides too: what is not launched by `emulate` is computed by MLX's own operations.
"""

from __future__ import annotations

import pytest

from tests.cuda.emulator import fewer


@pytest.fixture(autouse=True)
def small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "stock")
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: 2)
    fewer(monkeypatch, "personaplex.cuda.kernel.shared_memory", lambda: 227 * 1024)
