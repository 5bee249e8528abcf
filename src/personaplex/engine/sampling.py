"""Temperature and top-k sampling on the device, one random key per slot.

A slot's draws depend on its own key, its own position and its own logits: not on its neighbours, and not on how the
frames before were computed (a batched prefill and single steps draw the same).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from personaplex.cuda import sampling as kernels
from personaplex.cuda.depformer import Choice
from personaplex.cuda.kernel import enabled
from personaplex.errors import UsageError
from personaplex.models.streams import UNGENERATED
from personaplex.units import N_CODEBOOKS

PENALTY_FRAMES = 30
"""Frames that a repetition penalty looks back on."""

FRAME_DRAWS = 1 + 2 * N_CODEBOOKS
"""Draws that a frame may have: text and every step a checkpoint may have, so that 8 and 16 steps draw alike."""


@dataclass(frozen=True)
class Sampling:
    """How a session's tokens are chosen. `top_k` 0 means all; `repetition_penalty` 1 means none (the reference's way).

    Raises UsageError for values out of range.
    """

    text_temperature: float = 0.7
    text_top_k: int = 25
    audio_temperature: float = 0.8
    audio_top_k: int = 250
    repetition_penalty: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        for choice in dataclasses.fields(self):
            value = getattr(self, choice.name)
            fits = isinstance(value, int | float) if choice.type == "float" else type(value).__name__ == choice.type
            if not fits:
                raise UsageError(f"{choice.name.replace('_', ' ')} is {value!r}; it must be a {choice.type}")
        for name in ("text_temperature", "audio_temperature"):
            if not 0 <= getattr(self, name) < 100:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be from 0 to 100")
        for name in ("text_top_k", "audio_top_k"):
            if not 0 <= getattr(self, name) < 1 << 31:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be 0 (all) or more")
        if not 1 <= self.repetition_penalty <= 10:
            raise UsageError(f"repetition penalty is {self.repetition_penalty}; it must be from 1 (off) to 10")

    def resolved(self) -> Sampling:
        """Greedy, and a temperature of 0, said as what they are: top-k 1."""
        text_greedy = self.greedy or self.text_temperature == 0
        audio_greedy = self.greedy or self.audio_temperature == 0
        return dataclasses.replace(
            self,
            text_top_k=1 if text_greedy else self.text_top_k,
            text_temperature=1.0 if text_greedy else self.text_temperature,
            audio_top_k=1 if audio_greedy else self.audio_top_k,
            audio_temperature=1.0 if audio_greedy else self.audio_temperature,
        )

    def row(self) -> SlotSampling:
        """These choices as a one-slot row of the batched state."""
        s = self.resolved()
        return SlotSampling(
            mx.array([s.text_temperature], mx.float32),
            mx.array([s.text_top_k], mx.int32),
            mx.array([s.audio_temperature], mx.float32),
            mx.array([s.audio_top_k], mx.int32),
            mx.array([s.repetition_penalty], mx.float32),
        )


class SlotSampling(NamedTuple):
    """Sampling of every slot, each [B]."""

    text_temperature: mx.array
    text_top_k: mx.array
    audio_temperature: mx.array
    audio_top_k: mx.array
    penalty: mx.array


class Ceiling(NamedTuple):
    """The largest top-k among the slots (0: no limit), and whether any has a penalty: what a step must prepare for.

    It bounds work, not results: a slot draws the same under any ceiling that is high enough for it.
    """

    text: int
    audio: int
    penalty: bool

    @classmethod
    def over(cls, *choices: Sampling) -> Ceiling:
        """The ceiling for sessions that step together."""

        def highest(values: list[int]) -> int:
            return 0 if 0 in values else max(values)

        resolved = [s.resolved() for s in choices]
        return cls(
            highest([s.text_top_k for s in resolved]),
            highest([s.audio_top_k for s in resolved]),
            any(s.repetition_penalty > 1 for s in resolved),
        )

    def raised(self, *choices: Sampling) -> Ceiling:
        """This ceiling if it is high enough for `choices`; else one of few that are, so that few steps are compiled."""
        needed = Ceiling.over(*choices) if choices else self

        def high_enough(mine: int, theirs: int) -> int:
            if mine == 0 or theirs == 0:
                return 0
            return mine if theirs <= mine else 1 << (theirs - 1).bit_length()

        return Ceiling(
            high_enough(self.text, needed.text),
            high_enough(self.audio, needed.audio),
            self.penalty or needed.penalty,
        )


def check_seed(seed: int) -> None:
    """Raise UsageError unless `seed` is a whole number from 0 to 2^63 - 1."""
    if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise UsageError(f"seed is {seed}; it must be from 0 to 2^63 - 1")


def session_key(seed: int) -> mx.array:
    """The key [1, 2] of a session: mixed once, so that neighbouring seeds share nothing."""
    return mx.random.split(mx.random.key(seed))[:1]


def frame_keys(key: mx.array, position: mx.array, n: int) -> mx.array:
    """Keys [B, n, 2] for the draws at `position` [B] of sessions with keys [B, 2]."""
    at = mx.stack([key[:, 0] ^ position.astype(mx.uint32), key[:, 1]], axis=1)
    return mx.vmap(lambda k: mx.random.split(k, n))(at)


def frame_noise(key: mx.array, position: mx.array, draws: range, vocabulary: int) -> mx.array:
    """Gumbel noise [B, n, V] for some of the `FRAME_DRAWS` at `position` [B] of sessions with `key` [B, 2].

    It belongs to tokens, not to ranks, so it is the same whatever the top-k.
    """
    if enabled():
        return kernels.noise(key, position, draws, FRAME_DRAWS, vocabulary)
    keys = frame_keys(key, position, FRAME_DRAWS)[:, draws.start : draws.stop]
    drawn = mx.vmap(lambda k: mx.random.gumbel((vocabulary,), key=k))(keys.reshape(-1, 2))
    return drawn.reshape(*keys.shape[:2], vocabulary)


class Draws(NamedTuple):
    """All that one frame's draws from vocabularies of one size share, computed once for them.

    `noise` [B, n, V] for each of n draws (without it every slot has k = 1), temperature and top_k [B] of each slot; for
    the stock operations also `last` [B, 1], the place of the last that a slot keeps among the `n_largest` in ascending
    order.
    """

    noise: mx.array | None
    temperature: mx.array
    top_k: mx.array
    last: mx.array | None
    n_largest: int

    @classmethod
    def open(
        cls,
        key: mx.array,
        position: mx.array,
        draws: range,
        vocabulary: int,
        temperature: mx.array,
        top_k: mx.array,
        ceiling: int,
    ) -> Draws:
        """Prepare some of the draws at `position` [B] of sessions with `key` [B, 2]."""
        n_largest = ceiling if 0 < ceiling < vocabulary else vocabulary
        noise = None if ceiling == 1 else frame_noise(key, position, draws, vocabulary)
        if noise is None or enabled():
            return cls(noise, temperature, top_k, None, n_largest)
        noise = mx.where((top_k == 1)[:, None, None], 0, noise)
        last = mx.where(top_k == 0, 0, mx.maximum(n_largest - top_k, 0))[:, None]
        return cls(noise, temperature, top_k, last, n_largest)

    def draw(self, i: int, logits: mx.array, wanted: mx.array, column: int) -> mx.array:
        """Draw i, one token per slot: logits [B, V] -> tokens [B] int32.

        Among the k largest (and what equals the last of them), proportional to softmax(logits / temperature)
        (reference sampling.py, whose argmax of p / Exp(1) noise is this arg-max of logits + Gumbel noise). k = 1 is
        the first maximum. A slot gets what it has in this `column` of `wanted` [B, m] instead, unless that is
        UNGENERATED.
        """
        if enabled():
            of = (self.noise, self.temperature, self.top_k, wanted)
            return kernels.draw(logits, *of, which=i, column=column, free=UNGENERATED)
        given = wanted[:, column]
        return mx.where(given == UNGENERATED, self._drawn(i, logits), given)

    def choice(self, wanted: mx.array, column: int) -> Choice:
        """All draws of a depformer's frame, for a kernel: draw i as above, with column + i of `wanted` [B, m]."""
        return Choice(wanted, column, self.noise, self.temperature, self.top_k)

    def _drawn(self, i: int, logits: mx.array) -> mx.array:
        if self.noise is None or self.last is None:
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        logits = logits.astype(mx.float32)
        largest = mx.sort(mx.topk(logits, self.n_largest) if self.n_largest < logits.shape[-1] else logits)
        kept = logits >= mx.take_along_axis(largest, self.last, axis=-1)
        scores = logits / self.temperature[:, None] + self.noise[:, i]
        return mx.argmax(mx.where(kept, scores, -mx.inf), axis=-1).astype(mx.int32)


def entropy(logits: mx.array) -> mx.array:
    """Logits [..., V] -> [...] nats: how much in doubt a choice was."""
    logits = logits.astype(mx.float32)
    return mx.logsumexp(logits, axis=-1) - (mx.softmax(logits, axis=-1) * logits).sum(axis=-1)


def mean_entropy(logits: mx.array) -> mx.array:
    """Logits [B, n, V] -> [B] nats: how much in doubt n choices were, on average."""
    return entropy(logits).mean(axis=-1)


def step_entropies(text_logits: mx.array, audio_logits: mx.array) -> mx.array:
    """Logits [B, V] and [B, n, W], n >= 8 -> [B, 3] nats: of text, semantic code, and acoustic codes on average."""
    if enabled():
        return kernels.step_entropies(text_logits, audio_logits, N_CODEBOOKS)
    codes = entropy(audio_logits[:, :N_CODEBOOKS])
    return mx.stack([entropy(text_logits), codes[:, 0], codes[:, 1:].mean(axis=-1)], axis=-1)


def each(by_stream: mx.array) -> list[mx.array]:
    """[B, n, ...] -> n arrays [B, ...]."""
    return [one.squeeze(1) for one in mx.split(by_stream, by_stream.shape[1], axis=1)]


def penalise(logits: mx.array, recent: mx.array, spared: tuple[int, ...], penalty: mx.array) -> mx.array:
    """Push down tokens drawn lately: logits [B, V], recent [B, W] (-1: none), penalty [B].

    `spared` tokens are never pushed: they mean silence, and a model punished for being silent cannot listen.
    """
    vocabulary = logits.shape[-1]
    marks = mx.zeros((logits.shape[0], vocabulary + 1), mx.bool_)
    index = mx.where(recent < 0, vocabulary, recent)
    seen = mx.put_along_axis(marks, index, mx.ones(index.shape, mx.bool_), axis=1)[:, :vocabulary]
    seen = seen & (mx.arange(vocabulary)[None, :, None] != mx.array(spared)).all(axis=-1)
    factor = penalty[:, None]
    return mx.where(seen, mx.where(logits > 0, logits / factor, logits * factor), logits)
