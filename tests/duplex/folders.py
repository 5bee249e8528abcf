"""Folders in the benchmark's layout, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.audio import write_audio
from personaplex.units import SAMPLE_RATE


def hum(seconds: float, seed: int = 0) -> np.ndarray:
    """Sound that is no speech, and another for another seed."""
    return np.random.default_rng(seed).normal(0, 0.02, round(seconds * SAMPLE_RATE)).astype(np.float32)


def words(*times: tuple[float, float]) -> dict[str, Any]:
    chunks = [{"text": f"w{i}", "timestamp": [start, end]} for i, (start, end) in enumerate(times)]
    return {"text": " ".join(str(chunk["text"]) for chunk in chunks), "chunks": chunks}


def put(
    folder: Path,
    annotation: dict[str, Any] | None = None,
    said: dict[str, Any] | None = None,
    *,
    user: np.ndarray | None = None,
    agent: np.ndarray | None = None,
) -> Path:
    """A clip: its annotation by file name, its `output.json`, and sound for both sides."""
    folder.mkdir(parents=True)
    write_audio(folder / "input.wav", hum(10) if user is None else user)
    write_audio(folder / "output.wav", hum(10, seed=1) if agent is None else agent)
    for name, entry in (annotation or {}).items():
        (folder / name).write_text(json.dumps(entry))
    if said is not None:
        (folder / "output.json").write_text(json.dumps(said))
    return folder


def turn(end: float) -> dict[str, Any]:
    return {"turn_taking.json": [{"text": "[TURN-TAKING]", "timestamp": [end, end + 1]}]}


def interrupt(start: float, end: float) -> dict[str, Any]:
    return {"interrupt.json": [{"context": "a", "interrupt": "b", "timestamp": [start, end]}]}


def overlap(start: float, end: float) -> dict[str, Any]:
    return {"metadata.json": {"context_text": "a", "current_turn_text": "b", "timestamps": [start, end]}}
