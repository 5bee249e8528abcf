"""Kernels in these tests run on the emulator: a card of two multiprocessors, unless a test says otherwise."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.cuda.kernel.multiprocessors", lambda: 2)
    monkeypatch.setattr("personaplex.cuda.kernel.shared_memory", lambda: 227 * 1024)
