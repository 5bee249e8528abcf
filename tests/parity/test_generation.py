"""Greedy conversations against the PyTorch reference, token for token, one frame earlier than it."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.engine.generator import Generator
from personaplex.engine.prompt import Prompt, compose
from personaplex.engine.sampling import Sampling
from personaplex.engine.trace import run_trace
from personaplex.models.streams import DELAYS
from personaplex.voice import Voice
from tests.conftest import Tensors, same

GREEDY = Sampling(greedy=True)
MODES = ["audio", "embeddings", "noprompt"]


class Run(NamedTuple):
    prompt: Prompt
    generator: Generator


def prompt_of(mode: str, folder: ModelFolder, expected: Tensors) -> Prompt:
    if mode == "noprompt":
        return compose(folder.config)
    tokens = [int(t) for t in np.array(expected["gen.text_prompt_tokens"])]
    if mode == "audio":
        return compose(folder.config, Voice("audio", codes=np.array(expected["gen.voice_prompt_codes"])), tokens)
    return compose(folder.config, folder.voices.load("VOICE0"), tokens)


def trace(mode: str, folder: ModelFolder, expected: Tensors, steps: int = 8, *, shifted: bool = False) -> Tensors:
    generator = Generator(folder.load_lm(steps, mx.float32), folder.config)
    prompt = prompt_of(mode, folder, expected)
    return run_trace(generator, prompt, expected["gen.user_codes"], GREEDY, 0, shifted=shifted)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_the_references_one_call_sooner(mode: str, folder: ModelFolder, expected: Tensors) -> None:
    ours, reference = trace(mode, folder, expected)["out"], expected[f"gen.{mode}.out"]
    assert ours.shape == reference.shape == (1, 17, 40)
    assert same(ours[:, :, :-1], reference[:, :, 1:])


@pytest.mark.parametrize("mode", MODES)
def test_reference_timing_is_the_reference_exactly(mode: str, folder: ModelFolder, expected: Tensors) -> None:
    assert same(trace(mode, folder, expected, shifted=True)["out"], expected[f"gen.{mode}.out"])


@pytest.mark.parametrize("mode", MODES)
def test_eight_depformer_steps_say_what_sixteen_say(mode: str, folder: ModelFolder, expected: Tensors) -> None:
    assert same(trace(mode, folder, expected, 8)["out"], trace(mode, folder, expected, 16)["out"])


@pytest.mark.parametrize("mode", ["audio", "embeddings"])
@pytest.mark.parametrize("call", [0, 1, 5, 39])
def test_logits_of_single_calls(mode: str, call: int, folder: ModelFolder, expected: Tensors) -> None:
    found = trace(mode, folder, expected, shifted=True)
    text = expected[f"gen.{mode}.text_logits_{call}"].reshape(-1)
    assert float(mx.abs(found["text_logits"][call] - text).max()) < 1e-3
    audio = expected[f"gen.{mode}.audio_logits_{call}_first64"].reshape(-1, 64)[:8]
    # At call 0 the reference had drawn only text and semantic code freely; its chain is ours all the same.
    assert float(mx.abs(found["audio_logits"][call, :, :64] - audio).max()) < 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_offset_and_token_ring_after_the_prompt(mode: str, folder: ModelFolder, expected: Tensors) -> None:
    prompt = prompt_of(mode, folder, expected)
    assert prompt.n_frames == int(expected[f"gen.{mode}.offset_after_prompt"])
    if mode == "noprompt":
        assert (np.array(expected["gen.noprompt.cache_after_prompt"]) < 0).all()
        return
    ring, at = np.full((17, 4), -2), prompt.n_frames - len(prompt.columns)
    for position, column in enumerate(prompt.columns, start=at):
        ring[:, position % 4] = column
    delayed = np.array(DELAYS) == 1
    # The reference has written the delayed half of the next column; the other half is still four columns old.
    ring[delayed, prompt.n_frames % 4] = prompt.pending[delayed]
    assert np.array_equal(ring, np.array(expected[f"gen.{mode}.cache_after_prompt"])[0])


def test_the_formula_for_the_length_of_a_prompt(folder: ModelFolder, expected: Tensors) -> None:
    """P = F + 12 + N from a recording of F frames, V + 1 + 12 + N from V embeddings."""
    assert prompt_of("audio", folder, expected).n_frames == 9 + 12 + 7
    assert prompt_of("embeddings", folder, expected).n_frames == 8 + 1 + 12 + 7


def test_a_saved_voice_and_its_recording_prompt_alike(folder: ModelFolder, expected: Tensors) -> None:
    lm = folder.load_lm(dtype=mx.float32)
    voice = folder.voices.load("VOICE0")
    assert voice.embeddings is not None
    prompt = prompt_of("audio", folder, expected)
    from_codes = lm.embed(mx.array(prompt.columns[None, :8]))[0]
    # The fixture's embeddings were saved in bfloat16.
    assert float(mx.abs(from_codes - voice.embeddings.astype(mx.float32)).max()) < 2e-2
