"""One caller: what a step of the language model costs by how much it remembers, and a whole frame with the codec.

A step reads every weight once (7B, 8 depformer steps: 14.7 GB in bfloat16, 8.0 in 8 bits, 4.3 in 4) and the keys and
values of all it remembers (1.57 GB for 3,000 frames in bfloat16), and does two operations a weight. At batch 1 the
memory is the limit: the floor is bytes over the measured bandwidth, printed beside each time as `achieved`, the share
of what is possible. What keeps a step from its floor is mostly the number of kernels (`kernels`, counted from the
graph), for each costs a launch, and a step is a chain. What must be kept is 80 ms.

LM step: user codes on the host in, temporal transformer, text, depformer, all draws at the default temperatures, tokens
on the host out; the position is held, so that each row has one context. Whole frame: 80 ms of sound on the host in
(encoder, language model, decoder) and sound on the host out, with a full window. The window holds random keys and
values, set there and not come to by talking. Prompts are not pinned, as with `respond`.

Where this package's kernels compute, each row says how far their logits are from MLX's own: `logits_off`, of a step
from the row's state, and `bundled_logits_off`, of the bundled model's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from personaplex.bench import difference
from personaplex.bench.demand import Demand, of_decoder, of_encoder, of_step
from personaplex.bench.filled import filled, filled_codec
from personaplex.bench.graph import n_kernels
from personaplex.bench.report import Row, measure
from personaplex.bench.roof import roof
from personaplex.bench.wanted import Wanted, kernels
from personaplex.bench.weights import open_model
from personaplex.cuda.kernel import built_before
from personaplex.engine.duplex import Duplex, read
from personaplex.engine.generator import Generator, GeneratorState
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.model import PersonaPlex
from personaplex.nn.state import arrays
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS

GPU_FRAMES, CPU_FRAMES = 2000, 50


def run(wanted: Wanted) -> Iterator[Row]:
    """Rows by precision and context, then a whole frame for each precision."""
    roof()  # before a model fills the memory
    for bits in wanted.every_bits:
        yield from _of_precision(wanted, bits)


def _of_precision(wanted: Wanted, bits: int | None) -> Iterator[Row]:
    model = open_model(wanted.name, bits, wanted.compiled)
    frames = wanted.n_frames(GPU_FRAMES, CPU_FRAMES)
    window = model.lm.config.context
    contexts = wanted.context or tuple(window * quarter // 4 for quarter in (0, 1, 2, 4))
    for kv_bits in wanted.kv_bits:
        generator = Generator(model.lm, model.config, kv_bits=kv_bits)
        about = about_weights(model, bits) | {"kv_bits": kv_bits} | difference.of_bundled(kv_bits)
        for context in contexts:
            yield _step(model, generator, min(context, window), frames, about | {"context": min(context, window)})
        yield _frame(model, generator, frames, about | {"context": window})
    del model, generator
    gc.collect()
    mx.clear_cache()


def about_weights(model: PersonaPlex, bits: int | None) -> dict[str, object]:
    """What every row of a model says of it."""
    stored = str(model.lm.dtype).split(".")[-1] if bits in (None, 16) else bits
    return {"weights": stored, "compiled": model.compiled, "operations_by": kernels()}


def against(demand: Demand, ms: list[float]) -> dict[str, object]:
    """How near a measured time is to what this machine can do at most."""
    floor, typical = roof().floor_ms(demand), float(np.median(ms))
    return {
        "read_mb": round(demand.n_bytes / 1e6, 3),
        "gflop": round(demand.n_operations / 1e9, 2),
        "gb_per_s": round(demand.n_bytes / typical / 1e6, 1),
        "floor_ms": round(floor, 3),
        "achieved": round(floor / typical, 3),
    }


def _step(model: PersonaPlex, generator: Generator, context: int, frames: int, about: Mapping[str, object]) -> Row:
    window, sampling = model.lm.config.context, Sampling()
    ceiling = Ceiling.over(sampling)

    def step(user: mx.array, state: GeneratorState) -> tuple[mx.array, GeneratorState]:
        result, after = generator.step(user, state, ceiling)
        return result.tokens, after

    call: Callable[[mx.array, GeneratorState], tuple[mx.array, GeneratorState]]
    call = built_before(step, mx.compile(step) if model.compiled else step)
    # A full window has turned; an empty one has its first column behind it, which is not drawn.
    position = 2 * window if context == window else max(context, 1)
    held = mx.array([position], mx.int32)
    off, state = difference.of_step(generator, filled(generator, generator.begin(None, sampling=sampling)[1], position))
    state = state._replace(temporal=state.temporal._replace(position=held))
    user = np.zeros((1, N_CODEBOOKS), np.int32)
    extra = {**about, **off}

    def tick() -> None:
        nonlocal state
        tokens, state = call(mx.array(user), state)
        if "kernels" not in extra:
            extra["kernels"] = n_kernels(tokens, state)
        state = state._replace(temporal=state.temporal._replace(position=held))
        mx.eval(tokens, arrays(state))
        np.array(tokens)

    mx.reset_peak_memory()
    ms = measure(tick, frames)
    memory = {"peak_gib": round(mx.get_peak_memory() / 2**30, 2)}
    return Row("LM step", ms, extra | against(of_step(model.lm, [context], int(str(about["kv_bits"]))), ms) | memory)


def _frame(model: PersonaPlex, generator: Generator, frames: int, about: Mapping[str, object]) -> Row:
    window, sampling = model.lm.config.context, Sampling()
    duplex = Duplex(model.mimi, generator, Ceiling.over(sampling), compiled=model.compiled)
    state = filled_codec(duplex.begin(None, sampling=sampling), 2 * window)
    off, generated = difference.of_step(generator, filled(generator, state.generator, 2 * window))
    state = state._replace(generator=generated)
    sound = np.random.default_rng(0).normal(0, 0.05, (64, 1, FRAME_SAMPLES)).astype(np.float32)
    extra, n = dict[str, Any]({**about, **off}), 0

    def tick() -> None:
        nonlocal state, n
        frame, state = duplex.step(mx.array(sound[n % len(sound)]), state)
        if "kernels" not in extra:
            extra["kernels"] = n_kernels(frame.readout, state)
        read(frame, state)
        n += 1

    ms = measure(tick, frames)
    demand = of_step(model.lm, [window], int(str(about["kv_bits"])))
    demand = demand + of_encoder(model.mimi, model.config.mimi) + of_decoder(model.mimi, model.config.mimi)
    return Row("whole frame", ms, extra | against(demand, ms))


def picture(rows: list[dict[str, Any]]) -> str:
    """Step time against context, a curve for each precision; SVG."""
    from personaplex.bench.plot import svg

    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["name"] == "LM step":
            name = f"{row['weights']}, kv {row['kv_bits']}"
            curves.setdefault(name, []).append((row["context"], row["p50_ms"]))
    return svg("A step by what it remembers", "context, frames", "ms, p50", curves, 80)
