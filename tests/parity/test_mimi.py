"""Mimi against what the PyTorch reference computed with the same weights."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.models.mimi import Mimi
from personaplex.units import FRAME_SAMPLES
from tests.conftest import PARITY, WINDOW, Tensors, peak_error, read_expected, same

WAVEFORM = 1e-4
HIDDEN = 1e-5


@pytest.fixture(scope="module", params=[PARITY, WINDOW], ids=["parity", "window"])
def case(request: pytest.FixtureRequest) -> tuple[Mimi, Tensors]:
    folder: Path = request.param
    return ModelFolder(folder).load_mimi(), read_expected(folder)


def test_every_stage_of_the_encoder(case: tuple[Mimi, Tensors]) -> None:
    mimi, expected = case
    pcm = expected["mimi.wav"][:, 0]
    state = mimi.init_encoder(1)
    seanet, _ = mimi.encoder(pcm[..., None], state.seanet)
    assert peak_error(seanet.swapaxes(1, 2), expected["mimi.seanet_encoder_out"]) < HIDDEN
    transformed, _ = mimi.encoder_transformer(seanet, state.transformer)
    assert peak_error(transformed.swapaxes(1, 2), expected["mimi.encoder_transformer_out"]) < HIDDEN
    latent, _ = mimi.latents(pcm, state)
    assert peak_error(latent.swapaxes(1, 2), expected["mimi.latent"]) < HIDDEN


def test_codes_and_waveform_of_a_whole_file(case: tuple[Mimi, Tensors]) -> None:
    mimi, expected = case
    codes = mimi.encode(expected["mimi.wav"][:, 0])
    assert same(codes, expected["mimi.codes"])
    quantised = mimi.quantizer.decode(codes.swapaxes(1, 2))
    assert peak_error(quantised.swapaxes(1, 2), expected["mimi.quantized"]) < HIDDEN
    assert peak_error(mimi.decode(codes), expected["mimi.decoded"][:, 0]) < WAVEFORM


def test_codes_and_waveform_frame_by_frame(case: tuple[Mimi, Tensors]) -> None:
    mimi, expected = case
    pcm, reference = expected["mimi.wav"][:, 0], expected["mimi.codes"].astype(mx.int32)
    encoder, decoder, codes, decoded = mimi.init_encoder(1), mimi.init_decoder(1), [], []
    for t in range(reference.shape[2]):
        code, encoder = mimi.encode_step(pcm[:, t * FRAME_SAMPLES : (t + 1) * FRAME_SAMPLES], encoder)
        sound, decoder = mimi.decode_step(reference[:, :, t : t + 1], decoder)
        codes.append(code)
        decoded.append(sound)
    assert same(mx.concatenate(codes, axis=2), expected["mimi.codes"])
    assert peak_error(mx.concatenate(decoded, axis=1), expected["mimi.decoded"][:, 0]) < WAVEFORM


def test_the_reference_streams_as_it_does_offline(expected: Tensors) -> None:
    """Guards the fixture: our one code path may be held against either."""
    assert same(expected["mimi.stream_codes"], expected["mimi.codes"])
    assert peak_error(expected["mimi.stream_decoded"], expected["mimi.decoded"]) < WAVEFORM


def test_the_window_is_exactly_context_latents() -> None:
    """One key more or less changes the result by far more than the tolerance."""
    folder, expected = ModelFolder(WINDOW), read_expected(WINDOW)
    mimi = folder.load_mimi()
    assert mimi.encoder_transformer.context == folder.config.mimi.transformer.context == 16
    for wrong in (15, 17):
        mimi.encoder_transformer.context = wrong
        latent, _ = mimi.latents(expected["mimi.wav"][:, 0], mimi.init_encoder(1))
        assert peak_error(latent.swapaxes(1, 2), expected["mimi.latent"]) > 100 * HIDDEN
