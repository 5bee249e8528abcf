"""The language model as a stepping machine: user codes in, one frame of text and agent codes out.

One step at position t is given user frame t, completes column t, and emits agent frame t at once: its text and
semantic code were drawn a step ago, its acoustic codes are drawn now. The reference does the same arithmetic one call,
80 ms, later; the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np

from personaplex.config import ModelConfig
from personaplex.cuda.kernel import build, enabled
from personaplex.engine.columns import begin_column, end_column, remember, spoken
from personaplex.engine.prompt import Prompt
from personaplex.engine.sampling import (
    PENALTY_FRAMES,
    Ceiling,
    Draws,
    Sampling,
    SlotSampling,
    penalise,
    session_key,
)
from personaplex.errors import PersonaError, UsageError
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import (
    AGENT,
    DELAYS,
    N_STREAMS,
    TEXT,
    UNGENERATED,
    USER,
    initial_column,
)
from personaplex.nn.sinks import STRIDE, Sinks, due_shift, follow, open_sinks
from personaplex.nn.state import copied
from personaplex.nn.transformer import TransformerState
from personaplex.units import N_CODEBOOKS

PREFILL_COLUMNS = 256
"""Columns per call when a prompt is prefilled: bounds the memory of its attention."""


def check_kv_bits(kv_bits: int) -> None:
    """Raise UsageError unless keys and values can be kept in so many bits."""
    if kv_bits not in (8, 16):
        raise UsageError(f"kv bits is {kv_bits}; keys and values are kept in 16 bits (the activations' type) or in 8")


class GeneratorState(NamedTuple):
    """What a session is to the language model. Every array has the slot axis first.

    `column` [B, 17] is the next column, complete but for the user's semantic code; `recent` [B, W, 9] the last text
    and agent tokens, for the repetition penalty; the first `pinned` [B] columns stay in view, and follow the window
    by `sinks`.
    """

    temporal: TransformerState
    column: mx.array
    key: mx.array
    sampling: SlotSampling
    recent: mx.array
    pinned: mx.array
    sinks: Sinks


class Prefix(NamedTuple):
    """What one slot has made of a prompt, before anything is drawn: the same for every seed and sampling.

    `z` [1, dim] is the hidden vector of the prompt's last column `last` [1, 17]; `pending` [1, 17] is what is known of
    the next one.
    """

    temporal: TransformerState
    z: mx.array
    last: mx.array
    pending: mx.array


class Step(NamedTuple):
    """One step's results: the frame's `tokens` [B, 17], and what they were drawn from.

    `valid` [B] is False at position 0, where the frame is the initial tokens. `hidden` [B, dim], `text_logits`
    [B, text_card] and `audio_logits` [B, steps, card] belong to the tokens drawn in this step: text and semantic code
    of the next frame, acoustic codes of this one.
    """

    tokens: mx.array
    valid: mx.array
    hidden: mx.array
    text_logits: mx.array
    audio_logits: mx.array


class Generator:
    """Steps any number of slots together. Holds weights and constants, no state.

    With `pins` > 0, prompts of up to as many columns stay in view for ever; 0 is the reference's plain window.
    `spare_frames` is how far a state may be set back. With `kv_bits` 8 the rings take half the memory; 16 means the
    type of the activations. Raises UsageError for other bits.
    """

    def __init__(
        self, lm: LanguageModel, config: ModelConfig, *, pins: int = 0, spare_frames: int = 0, kv_bits: int = 16
    ) -> None:
        check_kv_bits(kv_bits)
        self.lm = lm
        self.config = config
        self.pins, self.spare_frames = pins, spare_frames
        self._extra_rows, self._kv_bits = pins + spare_frames, kv_bits
        self._initial = mx.array([initial_column(config.lm)], mx.int32)
        self._nothing = mx.array([[UNGENERATED] * N_STREAMS], mx.int32)
        self._spared_text = (0, config.lm.existing_text_padding_id)

    def open(self, prompt: Prompt, *, seed: int = 0, sampling: Sampling | None = None) -> GeneratorState:
        """A one-slot state that has read `prompt` and is ready for the first user frame."""
        return self.prefill(prompt, seed=seed, sampling=sampling)[1]

    def prefill(
        self, prompt: Prompt, *, seed: int = 0, sampling: Sampling | None = None
    ) -> tuple[Step | None, GeneratorState]:
        """Read `prompt` in one batched pass: the step of its last column (None without a prompt), and the state."""
        return self.begin(self.read(prompt), seed=seed, sampling=sampling)

    def read(self, prompt: Prompt) -> Prefix | None:
        """Read `prompt` without speaking; None when it is empty. Raises PersonaError when it is too long to pin."""
        prefix = [None, *self.reading(prompt, PREFILL_COLUMNS)][-1]
        if prefix is None:
            return None
        n_rows = self._empty().rings[0].k.shape[2]
        return prefix._replace(temporal=prefix.temporal.lengthened(n_rows))

    def check(self, prompt: Prompt) -> None:
        """Raise PersonaError for a prompt that is too long to be pinned."""
        if self.pins and prompt.n_frames > self.pins:
            raise PersonaError(
                f"voice and role are {prompt.n_frames} frames long; at most {self.pins} stay in view here: "
                "shorten them, or open the engine with more pinned frames"
            )

    def reading(self, prompt: Prompt, n_columns: int, inside: GeneratorState | None = None) -> Iterator[Prefix | None]:
        """Read `prompt` in calls of at most `n_columns`, with a pause after each: None until it is read.

        With a one-slot conversation it is read `inside` that, in place of the column that was to come next. Else the
        prefix has rings of the prompt's own length, if that fits the window: what it reads then is itself alone.
        """
        if prompt.n_frames == 0:
            return
        self.check(prompt)
        columns, first = mx.array(prompt.columns)[None], 0
        temporal = self._empty()
        pinned: mx.array | None = self._pinned(prompt.n_frames)
        if inside is None and prompt.n_frames <= self.lm.config.context:
            # Within the window nothing leaves the view, so that nothing is to be pinned, and positions are rows.
            temporal, pinned = temporal.shortened(prompt.n_frames), None
        if inside is not None:
            temporal, pinned = inside.temporal, inside.pinned
            # The column that begins a conversation is left out; the next tells how the frame before it sounded.
            first = min(cast(int, temporal.position.item()), 1)
            if first and prompt.embeddings is None:
                second = mx.where(mx.array(DELAYS) == 1, inside.column[:, None], columns[:, 1:2])
                columns = mx.concatenate([columns[:, :1], second, columns[:, 2:]], axis=1)
        embedded = self.lm.embed(columns)
        if prompt.embeddings is not None:
            embedded = mx.concatenate([prompt.embeddings.astype(embedded.dtype)[None], embedded], axis=1)
        size = min(n_columns, self.lm.config.context) if self.pins else n_columns
        for start in range(first, prompt.n_frames, size):
            z, temporal = self._advance(embedded[:, start : start + size], temporal, pinned)
            mx.eval(z, temporal)
            yield None
        yield Prefix(temporal, z[:, -1], columns[:, -1], mx.array(prompt.pending)[None])

    def begin(
        self, prefix: Prefix | None, *, seed: int = 0, sampling: Sampling | None = None, to_place: bool = False
    ) -> tuple[Step | None, GeneratorState]:
        """Begin to speak after a prompt that was read: the step of its last column, and the state.

        With `to_place` the state is for `insert` alone, which copies it into another: its rings are as long as what
        was read, and may be the prefix's own. The pinned keys as they were read are, and stay so: all that is begun
        with a prefix shares them.
        """
        sampling = sampling or Sampling()
        recent = mx.full((1, PENALTY_FRAMES, AGENT.stop), -1, mx.int32)
        n_frames = 0 if prefix is None else cast(int, prefix.temporal.position.item())
        temporal = self._empty() if prefix is None else prefix.temporal
        if to_place and prefix is None:
            temporal = temporal.shortened(1)
        elif prefix is not None and enabled() and not to_place:
            # Kernels write rings in place, and a prefix may begin any number of conversations.
            temporal = copied(temporal, 0)
        sinks = self._sinks(prefix, n_frames, shared=to_place)
        # A copy: a compiled step may not be given as state what it also holds as a constant.
        state = GeneratorState(
            temporal, self._initial + 0, session_key(seed), sampling.row(), recent, self._pinned(n_frames), sinks
        )
        return (None, state) if prefix is None else self._speak_first(prefix, state, sampling)

    def go_on(self, prefix: Prefix, inside: GeneratorState, sampling: Sampling) -> GeneratorState:
        """Speak again in the conversation `inside` which a prompt was read."""
        return self._speak_first(prefix, inside._replace(temporal=prefix.temporal), sampling)[1]

    def _speak_first(self, prefix: Prefix, state: GeneratorState, sampling: Sampling) -> tuple[Step, GeneratorState]:
        last = state.temporal.position - 1
        text, codes, *logits = self._speak(prefix.z, prefix.pending, last, state, Ceiling.over(sampling))
        said = spoken(text, codes)
        column = mx.concatenate([said, prefix.pending[:, USER]], axis=1)
        tokens = mx.where(mx.array(DELAYS) == 1, prefix.pending, prefix.last)
        state = state._replace(column=column, recent=remember(state.recent, said))
        return Step(tokens, last > 0, prefix.z, *logits), state

    def _empty(self) -> TransformerState:
        return self.lm.init_state(1, self._extra_rows, self._kv_bits)

    def _pinned(self, prompt_frames: int) -> mx.array:
        # The column that ends the prompt already belongs to the talk: so it was trained (train/compose.py).
        return mx.array([max(prompt_frames - 1, 0) if self.pins else 0], mx.int32)

    @cached_property
    def _unprompted(self) -> Sinks:
        # A row that is never looked at: all layers have keys, whether they are pinned or not.
        return open_sinks(self._empty().shortened(1).rings, 1, self.lm.dtype)

    def _sinks(self, prefix: Prefix | None, n_frames: int, *, shared: bool) -> Sinks:
        if not self.pins:
            return Sinks((), mx.zeros((1,), mx.int32))
        if prefix is None:
            return self._unprompted._replace(shift=mx.zeros((1,), mx.int32))
        return open_sinks(prefix.temporal.rings, max(n_frames - 1, 1), self.lm.dtype, shared=shared)

    def _advance(
        self, embedded: mx.array, temporal: TransformerState, pinned: mx.array | None
    ) -> tuple[mx.array, TransformerState]:
        return self.lm.advance(embedded, temporal, pinned if self.pins else None)

    def prepare(self, state: GeneratorState) -> None:
        """Build, where kernels compute, what `follow` launches: the first time is in the middle of a call."""
        if self.pins:
            one = np.ones(state.column.shape[0], np.int32)
            period = self.lm.config.max_period
            build(lambda: follow(state.temporal.rings, state.sinks, one, STRIDE * one, [0], period))

    def follow(self, state: GeneratorState) -> GeneratorState:
        """`state`, evaluated, with pinned prompts brought after the windows that have moved on a stride without them.

        For each slot it depends on its own position alone, so a slot may be asked for whenever another one needs it.
        """
        if not self.pins:
            return state
        temporal = state.temporal
        pinned = np.array(state.pinned)
        due = due_shift(np.array(temporal.position), pinned, self.lm.config.context)
        moved = np.flatnonzero(due != np.array(state.sinks.shift)).tolist()
        if not moved:
            return state
        rings, sinks = follow(temporal.rings, state.sinks, pinned, due, moved, self.lm.config.max_period)
        return state._replace(temporal=temporal._replace(rings=rings), sinks=sinks)

    def step(
        self, user: mx.array, state: GeneratorState, ceiling: Ceiling, forced: mx.array | None = None
    ) -> tuple[Step, GeneratorState]:
        """user [B, 8]: codes of the user frame at each slot's position -> that frame of the agent, and the state.

        `forced` [B, 17] gives tokens of the *next* column instead of drawing them (UNGENERATED: draw); its user
        streams are ignored. Stepping through a prompt's columns this way equals `open`.

        A state that was stepped is spent: on a card its rings are written in place, and belong to the state after it.
        """
        position = state.temporal.position
        nothing = mx.broadcast_to(self._nothing, state.column.shape) if forced is None else forced
        column, wanted = begin_column(self._initial, user, state.column, position, nothing)
        z, temporal = self._advance(self.lm.embed(column[:, None]), state.temporal, state.pinned)
        z = z[:, 0]
        text, codes, text_logits, audio_logits = self._speak(z, wanted, position, state, ceiling)
        said = end_column(column, wanted, position, text, codes, state.recent)
        next_state = state._replace(temporal=temporal, column=said.next, recent=said.recent)
        return Step(said.tokens, said.valid, z, text_logits, audio_logits), next_state

    def _speak(
        self, z: mx.array, wanted: mx.array, position: mx.array, state: GeneratorState, ceiling: Ceiling
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Text [B] and codes [B, S] of the column after `position`, and the logits they came from.

        Tokens given in `wanted` [B, 17] are kept, and later ones are conditioned on them.
        """
        s = state.sampling
        drawn, steps = (state.key, position), self.lm.depformer.n_steps
        of_text = Draws.open(*drawn, range(1), self.config.lm.text_card, s.text_temperature, s.text_top_k, ceiling.text)
        of_audio = Draws.open(
            *drawn, range(1, 1 + steps), self.config.lm.card, s.audio_temperature, s.audio_top_k, ceiling.audio
        )

        def penalised(stream: int, logits: mx.array, spared: tuple[int, ...]) -> mx.array:
            if ceiling.penalty and stream < AGENT.stop:
                return penalise(logits, state.recent[:, :, stream], spared, s.penalty)
            return logits

        def choose(step: int, logits: mx.array) -> mx.array:
            stream = AGENT.start + step
            logits = penalised(stream, logits, (self.config.silence_codes[step % N_CODEBOOKS],))
            return of_audio.draw(step, logits, wanted, stream)

        text_logits = self.lm.text_logits(z)
        favoured = penalised(TEXT, text_logits, self._spared_text)
        text = of_text.draw(0, favoured, wanted, TEXT)
        choice = None if ceiling.penalty else of_audio.choice(wanted, AGENT.start)
        codes, audio_logits = self.lm.depformer.generate(z, text, choose, choice)
        return text, codes, text_logits, audio_logits
