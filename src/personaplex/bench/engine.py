"""The live engine: what a step costs with 1, 2 and 4 slots, and how long a caller waits until the agent is ready.

A step reads every weight once, however many slots there are: on a GPU more slots are almost free until their rings
outweigh the weights, on a CPU each adds its arithmetic. What must be kept is 80 ms for all of them together. To be
ready, a conversation needs its voice and role read (one pass over the prompt), unless they were read before: then it
needs a copy of their keys and values, from memory or from disk, and one draw.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from personaplex.bench.report import Row
from personaplex.conversation import Audio, Settings
from personaplex.errors import UsageError
from personaplex.model import PersonaPlex
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits
from personaplex.units import FRAME_SAMPLES

SLOTS = (1, 2, 4)
PROMPT_TOKENS = 26
"""As long as the reference's default role."""
OPENINGS = 5


def run(model: str | None, frames: int, compiled: bool | None = None) -> list[Row]:
    """Time opening and stepping; rows carry `slots`."""
    if model is None:
        raise UsageError("this benchmark loads a model; name one with --model")
    with tempfile.TemporaryDirectory() as folder:
        return list(_rows(model, frames, compiled, Path(folder)))


def _rows(model: str, frames: int, compiled: bool | None, folder: Path) -> Iterator[Row]:
    def engine(slots: int) -> Engine:
        limits = Limits(prefix_folder=folder)
        return Engine(lambda: PersonaPlex.from_pretrained(model, compiled=compiled), slots, limits=limits)

    with engine(1) as first:
        voice = None if first.model.list_voices() else ""
        _ready(first, voice, 0)  # the first of all also compiles kernels
        yield Row("ready, cold", [_ready(first, voice, 1 + i) for i in range(OPENINGS)], {"slots": 1})
        in_memory = [_ready(first, voice, 1 + i) for i in range(OPENINGS)]
        yield Row("ready, prompt in memory", in_memory, {"slots": 1})
    with engine(1) as second:
        _ready(second, voice, 0)
        yield Row("ready, prompt on disk", [_ready(second, voice, 1 + i) for i in range(OPENINGS)], {"slots": 1})
    for slots in SLOTS:
        with engine(slots) as many:
            yield Row("step", _steps(many, voice, frames), {"slots": slots})


def _ready(engine: Engine, voice: str | None, role: int) -> float:
    engine.disk.do(lambda: None).result()  # the prompt read last may still be being written: not this one's time
    began = time.perf_counter()
    with engine.open(Settings(voice=voice, prompt=[5 + role] * PROMPT_TOKENS)):
        return 1000 * (time.perf_counter() - began)


def _steps(engine: Engine, voice: str | None, frames: int, warm_up: int = 5) -> list[float]:
    """Milliseconds of `frames` steps with a frame in every slot, as the engine itself measures them."""
    settings = Settings(voice=voice, prompt=[5] * PROMPT_TOKENS)
    calls = [engine.open(settings) for _ in range(engine.slots)]
    streams = [call.events() for call in calls]
    for call in calls:
        call.__enter__()
    pcm = np.random.default_rng(0).normal(0, 0.05, FRAME_SAMPLES).astype(np.float32)
    for _ in range(warm_up + frames):
        all_sent = threading.Event()
        engine.submit(all_sent.wait)  # or the first frame would be stepped alone
        for call in calls:
            call.send(pcm)
        all_sent.set()
        for stream in streams:
            while not isinstance(stream.get(), Audio):
                pass
    for call in calls:
        call.close()
    return engine.step_ms[-frames:]
