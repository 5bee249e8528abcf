"""Codec and language model as one machine: 80 ms of the user in, 80 ms of the agent out.

This is the whole loop of the model. Sessions are rows of the state; the caller decides when a frame is due.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda.kernel import built_before, enabled
from personaplex.engine.generator import Generator, GeneratorState, Prefix, Step
from personaplex.engine.prompt import Prompt
from personaplex.engine.readout import Readout, pack
from personaplex.engine.sampling import Ceiling, Sampling, session_key
from personaplex.models.mimi import DecoderState, EncoderState, Mimi
from personaplex.models.streams import AGENT, N_STREAMS, UNGENERATED
from personaplex.nn.sinks import PromptKeys
from personaplex.nn.state import advance_active, arrays, copied


class DuplexState(NamedTuple):
    """Everything a session is: what it has heard, thought and said. Slot axis first in every array."""

    encoder: EncoderState
    generator: GeneratorState
    decoder: DecoderState

    def holding(self, prompts: tuple[PromptKeys, ...]) -> DuplexState:
        """The same with other `prompts` held by its slots: none, and it is a tree of arrays alone, to be compiled."""
        sinks = self.generator.sinks._replace(prompts=prompts)
        return self._replace(generator=self.generator._replace(sinks=sinks))


class Frame(NamedTuple):
    """What came out of one step: `pcm` [B, 1920] of the agent, the language model's `step`, and `readout`: what the
    host reads of both, in one array.
    """

    pcm: mx.array
    step: Step
    readout: mx.array


class Duplex:
    """Steps sessions of one model. `ceiling` bounds their sampling; `compiled` fuses the step's graph once."""

    def __init__(self, mimi: Mimi, generator: Generator, ceiling: Ceiling, *, compiled: bool = False) -> None:
        self.mimi = mimi
        self.generator = generator
        self.ceiling = ceiling
        silence = mx.array([generator.config.silence_codes], mx.int32)

        def heard(pcm: mx.array, state: DuplexState, forced: mx.array | None) -> tuple[mx.array, Step, DuplexState]:
            codes, encoder = mimi.encode_step(pcm, state.encoder)
            result, generated = generator.step(codes[:, :, 0], state.generator, ceiling, forced)
            # Before the first frame there is nothing to decode but the initial tokens.
            spoken = mx.where(result.valid[:, None], result.tokens[:, AGENT], silence)
            pcm, decoder = mimi.decode_step(spoken[:, :, None], state.decoder)
            return pcm, result, DuplexState(encoder, generated, decoder)

        def framed(pcm: mx.array, result: Step, after: DuplexState) -> tuple[Frame, DuplexState]:
            # All that the encoder makes of a frame goes through these few numbers; its codes are codes, whatever they
            # are.
            return Frame(pcm, result, pack(pcm, result, after.encoder.downsample[0], after.generator)), after

        def step(pcm: mx.array, state: DuplexState) -> tuple[Frame, DuplexState]:
            return framed(*heard(pcm, state, None))

        def step_active(
            pcm: mx.array, active: mx.array, forced: mx.array, state: DuplexState
        ) -> tuple[Frame, DuplexState]:
            pcm, result, after = heard(pcm, state, forced)
            return framed(pcm, result, advance_active(active, state, after))

        self._step = built_before(step, mx.compile(step) if compiled else step)
        self._step_active = built_before(step_active, mx.compile(step_active) if compiled else step_active)

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
        """The same one-slot conversation, its next tokens drawn with another seed and sampling.

        It has memory of its own where kernels would write into the old one's, which somebody may go on from again.
        """
        if enabled():
            state = copied(state, 0)
        generated = state.generator._replace(key=session_key(seed), sampling=sampling.row())
        return state._replace(generator=generated)

    def step(
        self,
        pcm: mx.array,
        state: DuplexState,
        active: mx.array | None = None,
        forced: mx.array | None = None,
        *,
        follow: bool = True,
    ) -> tuple[Frame, DuplexState]:
        """pcm [B, 1920] of the user -> the agent's frame and the state after it, nothing evaluated yet.

        Slots that are not `active` [B] have no frame: they stay where they are, and what comes out of them means
        nothing. `forced` [B, 17], which needs `active`, are tokens of the next column: see `Generator.step`.

        Without `follow` no pinned prompt is to be brought after its window: `Readout.must_follow` of the step before
        said so. Otherwise positions are read from the device to see.

        Rebind the state before evaluating (`frame, state = duplex.step(pcm, state)`, then `read(frame, state)`):
        the rings are written in place only when nobody holds the old state any more, and copied otherwise. With
        kernels on an NVIDIA card they are written whoever holds it: a state that was stepped is spent.
        """
        if follow:
            state = state._replace(generator=self.generator.follow(state.generator))
        # Arrays that a step does not look at would cost one of every session something in each.
        prompts, bare = state.generator.sinks.prompts, state.holding(())
        if active is None:
            frame, after = self._step(pcm, bare)
        else:
            if forced is None:
                forced = mx.full((len(pcm), N_STREAMS), UNGENERATED, mx.int32)
            frame, after = self._step_active(pcm, active, forced, bare)
        return frame, after.holding(prompts)


def read(frame: Frame, state: DuplexState) -> Readout:
    """Evaluate a step's results and its state, and read them: the one synchronisation of a frame."""
    mx.eval(frame.readout, arrays(state))
    return Readout.of(frame.readout)


def settle(frame: Frame, state: DuplexState, *more: mx.array) -> None:
    """The same for who reads something else: evaluate results, state, and what `more` is to be read."""
    mx.eval(frame.pcm, frame.step.tokens, frame.step.valid, arrays(state), more)
