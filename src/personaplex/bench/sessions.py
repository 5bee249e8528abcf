"""Many callers on one device: how long a step of all of them takes, sound on the host in and sound on the host out.

A step reads every weight once, however many callers there are, and each caller's keys and values: 1.57 GB for 3,000
frames of the 7B in bfloat16, 0.84 GB in 8 bits. So N callers take (weights + N rings) over the bandwidth, and the
operations of N columns. What must be kept is 80 ms at p99, for a step that is late is heard. Memory sets another limit:
rings, pinned rows and the codec's state of every caller, beside the weights; a number of callers that does not fit is
skipped, and its row says so.

Every caller has a voice and role of its own length, a seed of its own, and is at a position of its own between the end
of its prompt and two windows. Those who call the same persona hold the keys of its prompt, as they were read, once for
all of them (`nn/sinks.py`): the last row of each kind is of as many callers as the largest before it, with one persona
(`shared`). `prompts_mb` is what these keys take, and `planned_gib` counts one of the longest prompt, not one a caller.

The rings hold random keys and values, set there and not come to by talking: 6,000 frames for each would take eight
minutes. Steps include the encoder, the language model, the decoder, the default
temperatures, the pinned prompts that follow their windows, and the final read, as the server does it (`Device.step`).
Where this package's kernels compute, `logits_off` says how far three callers' logits are from what MLX's own operations
make of each of them alone.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from personaplex.bench import difference
from personaplex.bench.demand import Demand, of_decoder, of_encoder, of_step
from personaplex.bench.filled import filled, filled_codec
from personaplex.bench.report import Row, measure
from personaplex.bench.roof import roof
from personaplex.bench.step import about_weights, against
from personaplex.bench.wanted import Wanted
from personaplex.bench.weights import open_model
from personaplex.engine.duplex import Duplex
from personaplex.engine.generator import Generator
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.model import PersonaPlex
from personaplex.nn.state import n_bytes
from personaplex.runtime.device import Device
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import available_bytes, plan_of
from personaplex.units import FRAME_SAMPLES

GPU_FRAMES, CPU_FRAMES = 2000, 20
GPU_SESSIONS, CPU_SESSIONS = (1, 8, 32, 64, 96, 128), (1, 2, 4)


def run(wanted: Wanted) -> Iterator[Row]:
    """Rows by precision of weights and of keys, and by number of callers."""
    roof()
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    frames = wanted.n_frames(GPU_FRAMES, CPU_FRAMES)
    for bits in wanted.every_bits:
        free = available_bytes()
        model = open_model(wanted.name, bits, wanted.compiled)
        for kv_bits in wanted.kv_bits:
            about, most = about_weights(model, bits) | {"kv_bits": kv_bits}, 0
            for n in wanted.sessions or (CPU_SESSIONS if on_cpu else GPU_SESSIONS):
                row = _measured(model, n, kv_bits, free, frames, about | {"sessions": n})
                yield row
                most = max(most, n) if row.ms else most
            if most > 1:
                yield _measured(model, most, kv_bits, free, frames, about | {"sessions": most, "shared": True})
        del model
        gc.collect()
        mx.clear_cache()


def _measured(model: PersonaPlex, n: int, kv_bits: int, free: int | None, frames: int, about: dict[str, Any]) -> Row:
    try:
        return _row(model, n, kv_bits, free, frames, about)
    except RuntimeError as error:  # MLX has no memory left
        return Row("step", [], about | {"skipped": str(error)})
    finally:
        gc.collect()
        mx.clear_cache()


def _row(model: PersonaPlex, n: int, kv_bits: int, free: int | None, frames: int, about: dict[str, Any]) -> Row:
    limits, shared = Limits(kv_bits=kv_bits, prefix_bytes=0), "shared" in about
    planned = plan_of(model.lm, model.mimi, n, limits, prompts=1 if shared else None)
    about = about | {"planned_gib": round(planned.total / 2**30, 2)}
    if free is not None and planned.total > free:
        return Row("step", [], about | {"skipped": f"does not fit: {free / 2**30:.1f} GiB are free"})
    mx.reset_peak_memory()
    device, filled_to = Device(model, n, limits), []
    generator = Generator(model.lm, model.config, pins=limits.pinned_frames, kv_bits=kv_bits)
    fresh = Duplex(model.mimi, generator, Ceiling.over(Sampling()))
    rng, window = np.random.default_rng(0), model.lm.config.context
    lengths, persona = rng.integers(1, max(min(limits.pinned_frames, window) // 2, 2), n), None
    for slot in range(n):
        pinned = int(lengths[0 if shared else slot])
        position = int(rng.integers(pinned + 1, 2 * window + 1))
        state = filled_codec(fresh.begin(None, seed=slot, sampling=Sampling()), position)
        state = state._replace(generator=filled(generator, state.generator, position, pinned))
        persona = persona or state.generator.sinks.prompts
        device.go_on(slot, state.holding(persona) if shared else state, Sampling())
        filled_to.append(min(position, window) + (pinned if position > window else 0))
        del state
    probed = sorted({0, n // 2, n - 1})
    off, generated = difference.of_step(device._generator, device._state.generator, probed)
    device._state = device._state._replace(generator=generated)
    about = about | off
    sound = rng.normal(0, 0.05, (8, n, FRAME_SAMPLES)).astype(np.float32)
    turn = 0

    def tick() -> None:
        nonlocal turn
        device.step(dict(enumerate(sound[turn % len(sound)])), {}, [Sampling()])
        turn += 1

    ms = measure(tick, frames)
    prompts = n_bytes(device._state.generator.sinks)
    memory = {"prompts_mb": round(prompts / 1e6, 3), "peak_gib": round(mx.get_peak_memory() / 2**30, 2)}
    return Row("step", ms, about | against(_demand(model, filled_to, kv_bits), ms) | memory)


def _demand(model: PersonaPlex, filled_to: list[int], kv_bits: int) -> Demand:
    n, config = len(filled_to), model.config.mimi
    codec = of_encoder(model.mimi, config, n) + of_decoder(model.mimi, config, n)
    return codec + of_step(model.lm, filled_to, kv_bits)


def picture(rows: list[dict[str, Any]]) -> str:
    """p99 against callers, a curve for each precision; SVG."""
    from personaplex.bench.plot import svg

    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if "p99_ms" in row and "shared" not in row:
            curves.setdefault(f"{row['weights']}, kv {row['kv_bits']}", []).append((row["sessions"], row["p99_ms"]))
    return svg("A step by callers", "callers", "ms, p99", curves, 80)
