"""Codec and language model as one machine: 80 ms of the user in, 80 ms of the agent out.

This is the whole loop of the model. Sessions are rows of the state; the caller decides when a frame is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from personaplex.engine.generator import Generator, GeneratorState, Prefix, Step
from personaplex.engine.prompt import Prompt
from personaplex.engine.sampling import Ceiling, Sampling, session_key
from personaplex.models.mimi import DecoderState, EncoderState, Mimi
from personaplex.models.streams import AGENT, N_STREAMS, UNGENERATED
from personaplex.nn.state import advance_active, arrays


class DuplexState(NamedTuple):
    """Everything a session is: what it has heard, thought and said. Slot axis first in every leaf."""

    encoder: EncoderState
    generator: GeneratorState
    decoder: DecoderState


class Frame(NamedTuple):
    """What came out of one step: `pcm` [B, 1920] of the agent, and the language model's `step`."""

    pcm: mx.array
    step: Step


class Duplex:
    """Steps sessions of one model. `ceiling` bounds their sampling; `compiled` fuses the step's graph once."""

    def __init__(self, mimi: Mimi, generator: Generator, ceiling: Ceiling, *, compiled: bool = False) -> None:
        self.mimi = mimi
        self.generator = generator
        self.ceiling = ceiling
        silence = mx.array([generator.config.silence_codes], mx.int32)
        self._step: Callable[[mx.array, DuplexState], tuple[Frame, DuplexState]]

        def step(pcm: mx.array, state: DuplexState, forced: mx.array | None = None) -> tuple[Frame, DuplexState]:
            codes, encoder = mimi.encode_step(pcm, state.encoder)
            result, generated = generator.step(codes[:, :, 0], state.generator, ceiling, forced)
            # Before the first frame there is nothing to decode but the initial tokens.
            spoken = mx.where(result.valid[:, None], result.tokens[:, AGENT], silence)
            pcm, decoder = mimi.decode_step(spoken[:, :, None], state.decoder)
            return Frame(pcm, result), DuplexState(encoder, generated, decoder)

        def step_active(
            pcm: mx.array, active: mx.array, forced: mx.array, state: DuplexState
        ) -> tuple[Frame, DuplexState]:
            frame, after = step(pcm, state, forced)
            return frame, advance_active(active, state, after)

        self._step = mx.compile(step) if compiled else step
        self._step_active = mx.compile(step_active) if compiled else step_active

    def open(self, prompt: Prompt, *, seed: int = 0, sampling: Sampling | None = None) -> DuplexState:
        """A one-slot state after `prompt`, evaluated. The codec starts fresh: the prompt was never heard as sound."""
        return self.begin(self.generator.read(prompt), seed=seed, sampling=sampling)

    def begin(self, prefix: Prefix | None, *, seed: int = 0, sampling: Sampling | None = None) -> DuplexState:
        """A one-slot state after a prompt that was read, evaluated."""
        _, generated = self.generator.begin(prefix, seed=seed, sampling=sampling)
        spare = self.generator.spare_frames
        state = DuplexState(self.mimi.init_encoder(1, spare), generated, self.mimi.init_decoder(1, spare))
        mx.eval(arrays(state))
        return state

    def resume(self, state: DuplexState, *, seed: int, sampling: Sampling) -> DuplexState:
        """The same one-slot conversation, its next tokens drawn with another seed and sampling."""
        generated = state.generator._replace(key=session_key(seed), sampling=sampling.row())
        return state._replace(generator=generated)

    def step(
        self, pcm: mx.array, state: DuplexState, active: mx.array | None = None, forced: mx.array | None = None
    ) -> tuple[Frame, DuplexState]:
        """pcm [B, 1920] of the user -> the agent's frame and the state after it, nothing evaluated yet.

        Slots that are not `active` [B] have no frame: they stay where they are, and what comes out of them means
        nothing. `forced` [B, 17], which needs `active`, are tokens of the next column: see `Generator.step`.

        Rebind the state before evaluating (`frame, state = duplex.step(pcm, state)`, then `settle(frame, state)`):
        the rings are written in place only when nobody holds the old state any more, and copied otherwise.
        """
        state = state._replace(generator=self.generator.follow(state.generator))
        if active is None:
            return self._step(pcm, state)
        if forced is None:
            forced = mx.full((len(pcm), N_STREAMS), UNGENERATED, mx.int32)
        return self._step_active(pcm, active, forced, state)


def settle(frame: Frame, state: DuplexState, *more: mx.array) -> None:
    """Evaluate a step's results, its state and what `more` is to be read: the one synchronisation of a frame."""
    mx.eval(frame.pcm, frame.step.tokens, frame.step.valid, arrays(state), more)
