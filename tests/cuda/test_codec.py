"""A whole codec by kernels, frame by frame, against the reference and against MLX's own operations."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.cuda.kernel import Kernel
from personaplex.models.mimi import Mimi
from personaplex.units import FRAME_SAMPLES
from tests.conftest import WINDOW, peak_error, read_expected, same
from tests.cuda.emulator import SLACK, emulate, fewer

FRAMES = 3


def stream(mimi: Mimi, pcm: mx.array, codes: mx.array) -> tuple[mx.array, mx.array]:
    """Codes of pcm [B, S] and the sound of codes [B, K, T], a frame at a time."""
    encoder, decoder, said, heard = mimi.init_encoder(len(pcm)), mimi.init_decoder(len(pcm)), [], []
    for t in range(FRAMES):
        code, encoder = mimi.encode_step(pcm[:, t * FRAME_SAMPLES : (t + 1) * FRAME_SAMPLES], encoder)
        sound, decoder = mimi.decode_step(codes[:, :, t : t + 1], decoder)
        said.append(code)
        heard.append(sound)
    return mx.concatenate(said, axis=2), mx.concatenate(heard, axis=1)


@pytest.mark.parametrize("slots", [1, 2])
def test_streams_by_kernels_are_the_reference(monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    expected, mimi = read_expected(WINDOW), ModelFolder(WINDOW).load_mimi()
    pcm, codes = expected["mimi.wav"][:, 0], expected["mimi.codes"].astype(mx.int32)
    if slots == 2:  # the second slot hears and says what the first does a frame later
        pcm = mx.concatenate([pcm, mx.roll(pcm, -FRAME_SAMPLES, 1)])
        codes = mx.concatenate([codes, mx.roll(codes, -1, 2)])
    stock_codes, stock_sound = stream(mimi, pcm, codes)

    launched = []

    def launch(kernel: Kernel, *call: Any) -> list[mx.array]:
        launched.append(kernel.name)
        return emulate(kernel, *call)

    monkeypatch.setattr("personaplex.cuda.kernel.launch", launch)
    fewer(monkeypatch, "personaplex.cuda.kernel.multiprocessors", lambda: 1)
    found_codes, found_sound = stream(mimi, pcm, codes)
    # 14 layers of SEANet each way, resampling, and the quantiser's three.
    assert len([name for name in launched if name.startswith(("conv_", "quantizer_"))]) == (14 + 14 + 2 + 3) * FRAMES
    assert same(found_codes, stock_codes)
    assert peak_error(found_sound, stock_sound) < SLACK * 1e-5
    assert same(found_codes[:1], expected["mimi.codes"][:, :, :FRAMES])
    assert peak_error(found_sound[:1], expected["mimi.decoded"][:, 0, : FRAMES * FRAME_SAMPLES]) < 1e-4


def test_a_codec_that_is_trained_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no gradients."""
    mimi = ModelFolder(WINDOW).load_mimi().train()

    def refuse(*_: object) -> list[mx.array]:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr("personaplex.cuda.kernel.launch", refuse)
    codes, _ = mimi.encode_step(mx.zeros((1, FRAME_SAMPLES)), mimi.init_encoder(1))
    sound, _ = mimi.decode_step(codes, mimi.init_decoder(1))
    assert sound.shape == (1, FRAME_SAMPLES)
