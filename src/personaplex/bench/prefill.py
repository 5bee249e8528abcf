"""Before the first word: reading voice and role, and taking them from memory or disk when they were read before.

A prompt of 90 columns (7.2 s) is known as a whole, so it is read in one pass: every temporal weight once for all of
them (7B: 13.3 GB in bfloat16) and 2 x 90 operations a weight (1.2 TFLOP). A GPU multiplies faster than it can read so
many weights, and is bound by its memory; a CPU is bound by arithmetic. What it leaves, the keys and values of 90
columns (47 MB), is kept: the next caller with the same voice and role needs a copy of it in its own ring, and one draw
(text head and depformer, 1.5 GB). `prefill`: columns on the host in, keys and values of the prompt evaluated. `from
memory`: these in a slot and the first column drawn, which is when the conversation can hear. `from disk`: read, held
against their checksum, and the same. `cold`: prefill and placing together. `longest
piece`: for how long others' frames wait, at most, while the longest prompt that can be pinned is read.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from personaplex.bench.demand import of_prompt, of_speech
from personaplex.bench.report import Row, measure
from personaplex.bench.roof import roof
from personaplex.bench.step import about_weights, against
from personaplex.bench.wanted import Wanted
from personaplex.bench.weights import open_model
from personaplex.engine.generator import Prefix
from personaplex.engine.prompt import SPACER_FRAMES, Prompt, compose
from personaplex.engine.sampling import Sampling
from personaplex.model import PersonaPlex
from personaplex.models.streams import N_STREAMS
from personaplex.runtime.device import Device
from personaplex.runtime.limits import Limits
from personaplex.units import FRAME_SAMPLES
from personaplex.voice import RING_COLUMNS, Voice

COLUMNS, VOICE_COLUMNS = 90, 50
MOST_PINNED = Limits().pinned_frames
GPU_TIMES, CPU_TIMES = 50, 5


def run(wanted: Wanted) -> Iterator[Row]:
    """Rows by precision and number of slots."""
    roof()
    for bits in wanted.every_bits:
        model = open_model(wanted.name, bits, wanted.compiled)
        for kv_bits in wanted.kv_bits:
            for slots in wanted.sessions or (1,):
                with tempfile.TemporaryDirectory() as folder:
                    limits = Limits(kv_bits=kv_bits, prefix_folder=Path(folder))
                    about = about_weights(model, bits) | {"kv_bits": kv_bits, "slots": slots}
                    device = Device(model, slots, limits)
                    for row in _rows(device, wanted, kv_bits):
                        yield Row(row.name, row.ms, about | row.extra)
                    del device
        del model
        gc.collect()
        mx.clear_cache()


def prompt_of(model: PersonaPlex, columns: int, seed: int) -> Prompt:
    """A voice (embeddings, if there is room for them) and a role of random tokens, `columns` long in all."""
    rng, lm = np.random.default_rng(seed), model.lm
    n_voice = min(VOICE_COLUMNS, columns // 2)
    voice = Voice(
        f"random {seed}",
        embeddings=mx.random.normal((n_voice, lm.config.dim), key=mx.random.key(seed)).astype(lm.dtype),
        ring=np.zeros((N_STREAMS, RING_COLUMNS), np.int32),
    )
    n_text = max(columns - n_voice - 1 - 2 * SPACER_FRAMES, 0)
    return compose(model.config, voice, rng.integers(4, lm.config.text_card, n_text).tolist())


def _longest(device: Device, prompt: Prompt, times: int, kv_bits: int) -> Row:
    """How long the others wait for one piece of the longest prompt that is pinned."""
    waits = []
    for _ in range(times):
        pieces, began = [], time.perf_counter()
        for _ in device.reading(prompt):
            now = time.perf_counter()
            pieces.append(1000 * (now - began))
            began = now
        waits.append(max(pieces))
    demand = of_prompt(device.model.lm, prompt.n_frames, kv_bits)
    return Row("longest piece", waits[1:] or waits, {"columns": prompt.n_frames} | against(demand, waits[1:] or waits))


def _rows(device: Device, wanted: Wanted, kv_bits: int) -> Iterator[Row]:
    times, model, sampling = wanted.n_frames(GPU_TIMES, CPU_TIMES), device.model, Sampling()
    prompt = prompt_of(model, COLUMNS, 0)
    about: dict[str, object] = {"columns": prompt.n_frames}

    def read() -> Prefix:
        prefix = [None, *device.reading(prompt)][-1]
        assert prefix is not None
        return prefix

    def begin(prefix: Prefix) -> None:
        device.begin(device.slots - 1, prefix, 1, sampling)

    def hear() -> None:
        """A frame for who was begun: a slot that came out finite is not cleared for the next."""
        device.step({device.slots - 1: np.zeros(FRAME_SAMPLES, np.float32)}, {}, [sampling])

    prefix, key = read(), device.prefixes.key(prompt)
    device.prefixes.write(key, prefix)

    def from_disk() -> None:
        kept = device.prefixes.fetch(key)
        assert kept is not None
        begin(kept)

    longest = prompt_of(model, min(MOST_PINNED, model.lm.config.context), 1)
    yield _longest(device, longest, times, kv_bits)
    reading, drawing = of_prompt(model.lm, prompt.n_frames, kv_bits), of_speech(model.lm)
    whole = reading + drawing
    for name, work, demand in (
        ("prefill", read, reading),
        ("cold", lambda: begin(read()), whole),
        ("from memory", lambda: begin(prefix), drawing),
        ("from disk", from_disk, drawing),
    ):
        ms = measure(work, times, warm_up=2, between=hear)
        yield Row(name, ms, about | against(demand, ms))
