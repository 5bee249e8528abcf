"""What the model is told before the conversation: voice, then role text, as forced columns.

Order (reference lm.py): voice frames, 6 spacer frames, one frame per text token, 6 spacer frames. Through all of it
the user's streams carry the sine codes; the agent's carry the voice and then silence; text is padding but for the
role text. All columns are known beforehand, so they are one batched prefill.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np

from personaplex.config import ModelConfig
from personaplex.errors import ConfigError, PersonaError
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import DELAYS, N_STREAMS, UNGENERATED, initial_column
from personaplex.units import FRAME_RATE, N_CODEBOOKS
from personaplex.voice import RING_COLUMNS, Voice

SPACER_FRAMES = int(0.5 * FRAME_RATE)
"""Frames of silence after the voice and after the text: 6."""

NO_PROMPTS = "this model is Moshi: its voice and role cannot be set; leave them out and it talks as itself"


@dataclass(frozen=True)
class Prompt:
    """Columns 0 ... P - 1 as the model reads them, and what is already known of column P.

    `embeddings` [V, dim] stand for the first V columns, `columns` [P - V, 17] follow; `pending` [17] is UNGENERATED
    where the model is to speak.
    """

    embeddings: mx.array | None
    columns: np.ndarray
    pending: np.ndarray

    @property
    def n_frames(self) -> int:
        """P, the position at which the conversation starts."""
        return len(self.columns) + (0 if self.embeddings is None else self.embeddings.shape[0])


def compose(config: ModelConfig, voice: Voice | None = None, text: list[int] | None = None) -> Prompt:
    """Lay out voice and role text; with neither there is no prompt at all, and frame 0 is the initial tokens.

    Raises PersonaError when the voice or the tokens do not fit the model, or it takes none.
    """
    initial = np.array(initial_column(config.lm), np.int32)
    frames, columns, embeddings = [initial], [], None
    if voice is None and text is None:
        return Prompt(None, np.zeros((0, N_STREAMS), np.int32), initial)
    if not config.prompts:
        raise PersonaError(NO_PROMPTS)
    _check(config, voice, text or [])
    pad = config.lm.existing_text_padding_id

    def frame(token: int, agent: np.ndarray) -> np.ndarray:
        return np.array([token, *agent, *config.sine_codes], np.int32)

    silence = np.array(config.silence_codes)
    forced = [frame(pad, codes) for codes in voice.codes] if voice and voice.codes is not None else []
    forced += [frame(pad, silence)] * SPACER_FRAMES
    forced += [frame(token, silence) for token in text or []]
    forced += [frame(pad, silence)] * SPACER_FRAMES
    if voice is not None and voice.embeddings is not None:
        assert voice.ring is not None
        embeddings, at = voice.embeddings, voice.embeddings.shape[0]
        now, then = voice.ring[:, at % RING_COLUMNS], voice.ring[:, (at + 1) % RING_COLUMNS]
        columns = [now]
        frames = [np.where(np.array(DELAYS) == 1, then, now)]
    else:
        # The frame forced first is lost, as in the reference: position 0 holds the initial tokens.
        columns = [initial]
        forced = forced[1:]
    frames += forced
    delayed = np.array(DELAYS) == 1
    columns += [np.where(delayed, before, after) for before, after in pairwise(frames)]
    pending = np.where(delayed, frames[-1], UNGENERATED)
    return Prompt(embeddings, np.stack(columns).astype(np.int32), pending.astype(np.int32))


def as_embeddings(lm: LanguageModel, config: ModelConfig, voice: Voice) -> Voice:
    """The voice as what the model reads of it: the same prompt in the other form, for one that is given as codes."""
    if voice.codes is None:
        return voice
    n_frames, columns = len(voice.codes), compose(config, voice).columns
    ring = np.zeros((N_STREAMS, RING_COLUMNS), np.int32)
    for at in (n_frames - 1, n_frames):
        ring[:, at % RING_COLUMNS] = columns[at]
    return Voice(voice.name, embeddings=lm.embed(mx.array(columns[None, : n_frames - 1]))[0], ring=ring)


def _check(config: ModelConfig, voice: Voice | None, text: list[int]) -> None:
    lm = config.lm
    if max(*config.silence_codes, *config.sine_codes) >= lm.card:
        raise ConfigError(
            f"this model's codebooks have {lm.card} entries, but the silence and sine codes go up to "
            f"{max(*config.silence_codes, *config.sine_codes)}; give its own in config.json"
        )
    if bad := [token for token in text if not 0 <= token < lm.text_card]:
        raise PersonaError(f"prompt token {bad[0]} is outside the vocabulary of {lm.text_card}")
    if voice is None:
        return
    if voice.codes is not None:
        codes = voice.codes
        if codes.ndim != 2 or codes.shape[1] != N_CODEBOOKS or not len(codes):
            raise PersonaError(f"voice {voice.name}: expected codes [frames, 8], found {list(codes.shape)}")
        if codes.min() < 0 or codes.max() >= lm.card:
            raise PersonaError(f"voice {voice.name}: its codes go beyond the {lm.card} entries of the codebooks")
    if voice.embeddings is not None:
        if voice.embeddings.ndim != 2 or voice.embeddings.shape[1] != lm.dim or not voice.embeddings.shape[0]:
            raise PersonaError(
                f"voice {voice.name} was made for another model: its embeddings are "
                f"{list(voice.embeddings.shape)}, this model's are [frames, {lm.dim}]"
            )
        if voice.ring is None or voice.ring.shape != (N_STREAMS, RING_COLUMNS):
            raise PersonaError(f"voice {voice.name}: its token ring must be [17, 4]")
        at = voice.embeddings.shape[0]
        now, then = voice.ring[:, at % RING_COLUMNS], voice.ring[:, (at + 1) % RING_COLUMNS]
        limits = np.array([lm.text_card] + [lm.card] * (N_STREAMS - 1))
        used = np.where(np.array(DELAYS) == 1, np.minimum(now, then), now)
        if used.min() < 0 or (now > limits).any() or (then > limits)[np.array(DELAYS) == 1].any():
            raise PersonaError(f"voice {voice.name}: its token ring holds tokens that this model does not have")
