"""The smallest model that can talk: the twelve-frame window's weights with the tiny model's tokenizer."""

from __future__ import annotations

import mlx.core as mx

from personaplex import PersonaPlex
from personaplex.checkpoint.folder import ModelFolder
from personaplex.config import ModelConfig
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits
from personaplex.text import Tokenizer
from tests.conftest import PARITY, WINDOW


class SmallFolder(ModelFolder):
    """It has no tokenizer of its own; pieces beyond its vocabulary are never drawn."""

    def load_tokenizer(self) -> Tokenizer:
        return Tokenizer(PARITY / "tokenizer_spm_32k_3.model", ModelConfig.read(PARITY / "config.json").lm.text_card)


def small_model() -> PersonaPlex:
    folder = SmallFolder(WINDOW)
    lm, mimi = folder.load_lm(dtype=mx.float32), folder.load_mimi()
    return PersonaPlex(folder, lm, mimi, folder.load_tokenizer(), compiled=False)


def tiny_engine(slots: int) -> Engine:
    """An engine with the tiny reference model, which has a voice and can read."""
    return Engine(lambda: PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False), slots)


def small_engine(slots: int, limits: Limits | None = None) -> Engine:
    """An engine with the smallest model; its prompts are tokens, and it has no voices."""
    return Engine(small_model, slots, limits=limits or Limits(pinned_frames=40))
