"""The language model's logits against the PyTorch reference, teacher-forced."""

from __future__ import annotations

import mlx.core as mx
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import initial_column
from personaplex.nn.rope import Rotation
from tests.conftest import PARITY, WINDOW, Tensors, read_expected, same

LOGITS = 1e-3


def worst(found: mx.array, wanted: mx.array, mask: mx.array) -> float:
    return float(mx.abs(mx.where(mask[..., None], found - wanted, 0)).max())


def test_teacher_forced_logits_of_all_sixteen_steps(folder: ModelFolder, expected: Tensors) -> None:
    lm = folder.load_lm(16, mx.float32)
    text, text_mask, audio, audio_mask = lm.teacher_forced(expected["lm.codes"].astype(mx.int32))
    assert same(text_mask, expected["lm.text_mask"][:, 0])
    assert same(audio_mask, expected["lm.audio_mask"])
    assert worst(text, expected["lm.text_logits"][:, 0], text_mask) < LOGITS
    assert worst(audio[..., :64], expected["lm.audio_logits_first64"], audio_mask) < LOGITS
    assert bool(mx.where(audio_mask, audio.argmax(-1) == expected["lm.audio_logits_argmax"], True).all().item())
    total = mx.logsumexp(audio, axis=-1)[..., None]
    assert worst(total, expected["lm.audio_logits_logsumexp"][..., None], audio_mask) < LOGITS


def test_eight_steps_are_the_first_eight_of_sixteen(folder: ModelFolder, lm: LanguageModel, expected: Tensors) -> None:
    codes = expected["lm.codes"].astype(mx.int32)
    _, _, eight, _ = lm.teacher_forced(codes)
    _, _, sixteen, _ = folder.load_lm(16, mx.float32).teacher_forced(codes)
    assert eight.shape[1] == 8
    assert float(mx.abs(eight - sixteen[:, :8]).max()) < 1e-4


def test_logits_past_a_window_of_twelve() -> None:
    folder, expected = ModelFolder(WINDOW), read_expected(WINDOW)
    lm = folder.load_lm(16, mx.float32)
    text, text_mask, audio, audio_mask = lm.teacher_forced(expected["lm.codes"].astype(mx.int32))
    assert worst(text, expected["lm.text_logits"][:, 0], text_mask) < LOGITS
    assert worst(audio[..., :64], expected["lm.audio_logits_first64"], audio_mask) < LOGITS


@pytest.mark.parametrize("wrong", [11, 13])
def test_a_window_that_is_off_by_one_shows(wrong: int) -> None:
    expected, lm = read_expected(WINDOW), ModelFolder(WINDOW).load_lm(dtype=mx.float32)
    lm.temporal.context = wrong
    text, mask, _, _ = lm.teacher_forced(expected["lm.codes"].astype(mx.int32))
    assert worst(text, expected["lm.text_logits"][:, 0], mask) > 10 * LOGITS


def test_stepping_through_the_ring_equals_the_whole_sequence() -> None:
    """Forty columns through a ring of twelve: the window of a stream is that of training, however long it lasts."""
    folder, expected = ModelFolder(WINDOW), read_expected(WINDOW)
    lm = folder.load_lm(dtype=mx.float32)
    columns = _columns(lm, expected["lm.codes"].astype(mx.int32))
    whole = lm.out_norm(lm.temporal.whole(lm.embed(columns)))
    state, stepped = lm.init_state(1), []
    for t in range(columns.shape[1]):
        z, state = lm.advance(lm.embed(columns[:, t : t + 1]), state)
        stepped.append(z)
    assert float(mx.abs(mx.concatenate(stepped, axis=1) - whole).max()) < 1e-5
    # Any other grouping into calls, longer than the ring too, is the same stream.
    for sizes in ([40], [25, 15], [5, 12, 13, 10], [11, 2, 27]):
        state, grouped, at = lm.init_state(1), [], 0
        for size in sizes:
            z, state = lm.advance(lm.embed(columns[:, at : at + size]), state)
            grouped.append(z)
            at += size
        assert float(mx.abs(mx.concatenate(grouped, axis=1) - whole).max()) < 1e-5


def _columns(lm: LanguageModel, frames: mx.array) -> mx.array:
    from personaplex.models.streams import delay

    return delay(frames, initial_column(lm.config)).swapaxes(1, 2)


def test_rotating_halves_shows(folder: ModelFolder, expected: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference rotates interleaved pairs; rotating halves must break parity, or parity proves nothing."""

    def halves(self: Rotation, x: mx.array) -> mx.array:
        return mx.fast.rope(x, x.shape[-1], traditional=False, base=self.period, scale=1.0, offset=self.start)

    lm = folder.load_lm(dtype=mx.float32)
    monkeypatch.setattr(Rotation, "__call__", halves)
    text, mask, _, _ = lm.teacher_forced(expected["lm.codes"].astype(mx.int32))
    assert worst(text, expected["lm.text_logits"][:, 0], mask) > 10 * LOGITS


def test_fixture_folders_differ() -> None:
    assert ModelFolder(PARITY).config.lm.context == 200
    assert ModelFolder(WINDOW).config.lm.context == 12
