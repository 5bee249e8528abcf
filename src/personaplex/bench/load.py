"""From a folder to the first word: time and memory of loading, then of a conversation's frames.

Loading reads each wanted tensor once, casts it and lets the source go: the peak should be the weights plus the largest
tensor (PersonaPlex 7B in bfloat16 with 8 depformer steps: 15.2 GB plus 0.3), and the time that of the disk. What
the user's depformer steps and codebooks are made of is left there (`read_gib`, where the system counts it). A frame
then reads every weight of the temporal transformer, text head and 8 depformer steps once: 14.7 GB in bfloat16.
Measured on the model you name; `scripts/random_checkpoint.py` writes one of the real size with random weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from personaplex.bench.report import Row, measure
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.engine.duplex import Duplex, settle
from personaplex.engine.generator import Generator
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.errors import UsageError
from personaplex.nn.state import n_bytes, parameters
from personaplex.units import FRAME_SAMPLES

T = TypeVar("T")
PROMPT_TOKENS = 26
"""As long as the reference's default role."""


def run(model: str | None, frames: int, compiled: bool | None = None) -> list[Row]:
    """Load, prompt and talk; rows of one measurement each, then the frames."""
    if model is None:
        raise UsageError("this benchmark loads a model; name one with --model")
    folder = ModelFolder(Path(resolve(model)))
    mimi, mimi_row = _measured("load codec", folder.load_mimi)
    lm, lm_row = _measured("load language model", folder.load_lm)
    weights = {"weights_gib": round(n_bytes(parameters(lm)) / 2**30, 3)}
    sampling = Sampling()
    compiled = mx.metal.is_available() if compiled is None else compiled
    generator = Generator(lm, folder.config)
    duplex = Duplex(mimi, generator, Ceiling.over(sampling), compiled=compiled)
    prompt = compose(folder.config, None, [5] * PROMPT_TOKENS if folder.config.prompts else None)
    state, prompt_row = _measured(f"prompt of {prompt.n_frames} frames", lambda: duplex.open(prompt, sampling=sampling))
    pcm = 0.1 * mx.random.normal((1, FRAME_SAMPLES))

    def talk() -> None:
        nonlocal state
        frame, state = duplex.step(pcm, state)
        settle(frame, state)

    how: dict[str, object] = {"compiled": compiled}
    first = Row("first frame", measure(talk, 1, warm_up=0), how)
    rows = [mimi_row, Row(lm_row.name, lm_row.ms, lm_row.extra | weights), prompt_row, first]
    return [*rows, Row("frame", measure(talk, frames), how)]


def _measured(name: str, work: Callable[[], T]) -> tuple[T, Row]:
    """Do something once: its time, the most memory MLX held meanwhile beyond what it held before, and what was read."""
    before, read_before = mx.get_active_memory(), bytes_read()
    mx.reset_peak_memory()
    began = time.perf_counter()
    result = work()
    ms = 1000 * (time.perf_counter() - began)
    extra: dict[str, object] = {"peak_gib": round((mx.get_peak_memory() - before) / 2**30, 3)}
    if read_before is not None:
        extra["read_gib"] = round(((bytes_read() or 0) - read_before) / 2**30, 3)
    return result, Row(name, [ms], extra)


def bytes_read() -> int | None:
    """What this process has asked the system to read so far; None where the system does not count."""
    try:
        counters = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in counters if line.startswith("rchar"))
    except (OSError, StopIteration, ValueError):
        return None
