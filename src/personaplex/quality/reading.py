"""Two models, the same tokens: the reference talks once, then each reads what was said, column by column.

Reading a conversation that is already there (teacher forcing) compares what the models would say next at every moment
of it, without one wrong choice leading the rest astray. It goes through the ring, in pieces, as talking does: memory
does not grow with the audio, and packed keys and values are read back as they would be in a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np

from personaplex.engine.generator import PREFILL_COLUMNS, Generator
from personaplex.engine.prompt import Prompt
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.files import whole_file
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.models.streams import AGENT, TEXT, USER_ACOUSTIC, USER_SEMANTIC
from personaplex.nn.state import arrays
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS

PIECE = 32
"""Columns that are read at once: 13 MB of results for the 7B."""


@dataclass(frozen=True)
class Script:
    """A conversation to be read: `prompt`, then `columns` [N + 1, 17], of which the last is only predicted."""

    name: str
    prompt: Prompt
    columns: np.ndarray

    @property
    def n_frames(self) -> int:
        """Columns whose successor is predicted."""
        return len(self.columns) - 1


class Piece(NamedTuple):
    """What a model makes of T columns.

    `layers` [L + 2, T, dim]: the embedded columns, what each layer puts out, and what the heads read. `text`
    [T, text_card] and `audio` [T, 8, card]: logits of the next column's text and agent codes.
    """

    layers: mx.array
    text: mx.array
    audio: mx.array


def write_script(
    name: str, generator: Generator, mimi: Mimi, prompt: Prompt, pcm: np.ndarray, sampling: Sampling, seed: int
) -> Script:
    """What the reference says to pcm [N x 1920], at 24 kHz, after a `prompt`, which may be empty."""
    _, state = generator.prefill(prompt, seed=seed, sampling=sampling)
    ceiling, encoder, columns = Ceiling.over(sampling), mimi.init_encoder(1), []
    for start in range(0, len(pcm), FRAME_SAMPLES):
        codes, encoder = mimi.encode_step(mx.array(pcm[None, start : start + FRAME_SAMPLES]), encoder)
        before = state.column
        step, state = generator.step(codes[:, :, 0], state, ceiling)
        # Of what the user said only the semantic code belongs to this column; the state fills in the others.
        said = step.tokens[:, USER_SEMANTIC : USER_SEMANTIC + 1]
        mx.eval(said, arrays((state, encoder)))
        columns.append(mx.concatenate([before[:, :USER_SEMANTIC], said, before[:, USER_ACOUSTIC]], axis=1))
    return Script(name, prompt, np.array(mx.concatenate([*columns, state.column])))


def read(lm: LanguageModel, script: Script, kv_bits: int = 16) -> Iterator[Piece]:
    """What `lm` makes of a script, `PIECE` columns at a time, evaluated."""
    embedded = lm.embed(mx.array(script.prompt.columns)[None])
    if script.prompt.embeddings is not None:
        embedded = mx.concatenate([script.prompt.embeddings.astype(embedded.dtype)[None], embedded], axis=1)
    state = lm.init_state(1, kv_bits=kv_bits)
    for start in range(0, embedded.shape[1], PREFILL_COLUMNS):
        _, state = lm.advance(embedded[:, start : start + PREFILL_COLUMNS], state)
        mx.eval(arrays(state))
    for start in range(0, script.n_frames, PIECE):
        columns = mx.array(script.columns[start : start + PIECE + 1])
        embedded, target = lm.embed(columns[None, :-1]), columns[1:]
        layers, state = lm.temporal.every_layer(embedded, state)
        z = lm.out_norm(layers[-1])
        codes = target[:, AGENT.start : AGENT.start + lm.depformer.n_steps]
        audio = lm.depformer.teacher_forced(z[0], target[:, TEXT], codes)[:, :N_CODEBOOKS]
        piece = Piece(mx.concatenate([embedded, *layers, z]), lm.text_head(z)[0], audio)
        mx.eval(piece, arrays(state))
        yield piece


def keep(pieces: Iterable[Piece], folder: Path) -> int:
    """Write pieces into an empty `folder`, for `kept`: so that the model they are of need not stay in memory.

    Returns their number. Raises OutputError when the disk is full.
    """
    n = 0
    for n, piece in enumerate(pieces, 1):
        with whole_file(folder / f"{n:06d}.safetensors") as temporary:
            mx.save_safetensors(str(temporary), piece._asdict())
    return n


def kept(folder: Path) -> Iterator[Piece]:
    """What `keep` wrote."""
    for path in sorted(folder.glob("*.safetensors")):
        yield Piece(**cast("dict[str, mx.array]", mx.load(str(path))))
