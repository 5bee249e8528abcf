"""PersonaPlex's own voices, reading aloud: the duplex model hears silence, and its text stream is given a sentence.

The voice is prompted as for a conversation; the model draws the sound that goes with the text, and when the text is
over it is listened to until it falls silent. Experimental: how well the 7B says what it is given was not measured.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from personaplex.audio import rms
from personaplex.cascade.engine import Piece, TimedWord
from personaplex.cascade.own_thread import OwnThread
from personaplex.engine.duplex import Duplex, settle
from personaplex.engine.generator import Prefix
from personaplex.engine.sampling import Ceiling
from personaplex.errors import SynthesisError, UsageError
from personaplex.model import PersonaPlex
from personaplex.models.streams import N_STREAMS, TEXT, UNGENERATED
from personaplex.nn.state import arrays, trim
from personaplex.text import EPAD, PAD
from personaplex.turns import QUIET_RMS
from personaplex.units import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE

QUIET_FRAMES = 4
"""Of silence after the text, at which the sentence is over (0.32 s): a pause between two sentences."""

MOST_FRAMES_AFTER = 25
"""What may still be said once all text was given (2 s)."""

_MOST_VOICES = 4
"""Voices whose prompt is kept as the model has read it."""


class Spoken(NamedTuple):
    """A frame [1920] of the agent at 24 kHz, and its text token."""

    pcm: np.ndarray
    token: int


class OwnVoices:
    """A model in one thread of its own. `model` is nano, a folder or a repository, as for `--model`.

    Raises CheckpointError and the like, as `PersonaPlex.from_pretrained` does.
    """

    languages = ("en",)

    def __init__(self, model: str = "nvidia/personaplex-7b-v1") -> None:
        self._thread: OwnThread[Spoken] = OwnThread("own-voices", mx.clear_streams)
        self._prefixes: OrderedDict[str | None, Prefix | None] = OrderedDict()
        try:
            self._thread.run(self._load, model)
        except BaseException:
            self._thread.close()
            raise
        own = self._model.default_voice
        self.voices = () if own is None else tuple(dict.fromkeys([own, *self._model.list_voices()]))

    def _load(self, model: str) -> None:
        made = self._model = PersonaPlex.from_pretrained(model)
        self._duplex = Duplex(made.mimi, made.generator, Ceiling.over(made.sampling()), compiled=made.compiled)

    def say(self, text: str, voice: str | None = None, language: str | None = None) -> Iterator[Piece]:
        """80 ms at a time, with the words that begin in them. `voice` may be a file, as in `respond`."""
        if language not in (None, *self.languages):
            raise UsageError(f"the model does not speak {language!r}; it speaks {self.languages[0]}")
        if voice is not None and voice not in self.voices and not Path(voice).is_file():
            raise UsageError(f"unknown voice {voice!r}; there are {', '.join(self.voices) or 'none'}")
        words = iter(text.split())
        for pcm, token in self.frames(text, voice or (self.voices[0] if self.voices else None)):
            begun = [TimedWord(next(words), 0.0, FRAME_SECONDS)] if token == EPAD else []
            yield Piece(pcm, SAMPLE_RATE, tuple(begun))

    def frames(self, text: str, voice: str | None) -> Iterator[Spoken]:
        """The frames of a text, as they are made. Raises SynthesisError for a text that is too long for the model."""
        yield from self._thread.stream(lambda: self._frames(text, voice))

    def _frames(self, text: str, voice: str | None) -> Iterator[Spoken]:
        tokens = self._model.tokenizer.spoken_tokens(text)
        if any(token >= self._model.config.lm.text_card for token in tokens):
            raise SynthesisError(f"the model has no tokens for {text!r}")
        state = self._duplex.begin(self._prefix(voice), sampling=self._model.sampling())
        silence, active = mx.zeros((1, FRAME_SAMPLES)), mx.array([True])
        quiet = 0
        for index in range(len(tokens) + 1 + MOST_FRAMES_AFTER):
            column = np.full((1, N_STREAMS), UNGENERATED, np.int32)
            column[0, TEXT] = tokens[index] if index < len(tokens) else PAD
            frame, state = self._duplex.step(silence, state, active, mx.array(column))
            settle(frame, state)
            if not index:
                continue  # its text was drawn before anything was given
            pcm = np.array(frame.pcm[0], np.float32)
            yield Spoken(pcm, int(np.array(frame.step.tokens)[0, TEXT]))
            quiet = quiet + 1 if index > len(tokens) and rms(pcm) < QUIET_RMS else 0
            if quiet == QUIET_FRAMES:
                return

    def _prefix(self, voice: str | None) -> Prefix | None:
        """What the model made of a voice; a file is read again, for it may have changed."""
        if voice in self._prefixes:
            self._prefixes.move_to_end(voice)
            return self._prefixes[voice]
        prompt = self._model.compose(voice, self._model.default_prompt if voice is not None else None)
        prefix = self._model.generator.read(prompt)
        if prefix is not None:
            prefix = trim(prefix)
            mx.eval(arrays(prefix))
        if voice in self.voices:
            self._prefixes[voice] = prefix
            if len(self._prefixes) > _MOST_VOICES:
                self._prefixes.popitem(last=False)
        return prefix

    def close(self) -> None:
        """Free the model."""
        self._prefixes.clear()
        del self._duplex, self._model
        self._thread.close()
