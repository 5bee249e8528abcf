"""A conversation that has gone on for long, made at once: its rings full of random keys and values.

What a step costs depends on how much its rings hold, not on what. To come to a context of 3,000 frames by talking would
take four minutes for each conversation.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from personaplex.engine.duplex import DuplexState
from personaplex.engine.generator import Generator, GeneratorState
from personaplex.nn.attention import Ring
from personaplex.nn.sinks import due_shift, open_sinks
from personaplex.nn.state import arrays
from personaplex.nn.transformer import TransformerState


def filled(generator: Generator, state: GeneratorState, position: int, pinned: int = 0) -> GeneratorState:
    """The one-slot `state` as if it had come to `position`, with `pinned` columns of prompt; evaluated."""
    temporal = TransformerState(tuple(_random(ring) for ring in state.temporal.rings), mx.array([position], mx.int32))
    shift = due_shift(np.array([position]), np.array([pinned]), generator.lm.config.context)
    sinks = state.sinks._replace(shift=mx.array(shift, mx.int32))
    if generator.pins:
        sinks = sinks.held(0, open_sinks(temporal.rings, max(pinned, 1), generator.lm.dtype))
    result = state._replace(temporal=temporal, pinned=mx.array([pinned], mx.int32), sinks=sinks)
    mx.eval(arrays(result))
    return result


def filled_codec(state: DuplexState, position: int) -> DuplexState:
    """The one-slot `state` with its codec as far on as `position`; its rings hold zeros."""

    def at(part: TransformerState) -> TransformerState:
        return part._replace(position=mx.full(part.position.shape, 2 * position, mx.int32))

    encoder = state.encoder._replace(transformer=at(state.encoder.transformer))
    decoder = state.decoder._replace(transformer=at(state.decoder.transformer))
    return state._replace(encoder=encoder, decoder=decoder)


def _random(ring: Ring) -> Ring:
    values = []
    for rows in ring:
        if rows.dtype == mx.int8:
            values.append(mx.random.randint(-127, 128, rows.shape, mx.int8))
        elif len(ring) > 2:  # what one unit of a packed row is worth
            values.append(mx.full(rows.shape, 1 / 64, rows.dtype))
        else:
            values.append(mx.random.normal(rows.shape).astype(rows.dtype))
        mx.eval(values[-1])
    return type(ring)(*values)
