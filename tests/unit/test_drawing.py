"""Pictures that stand in a page: read back by FFmpeg, and a spectrogram of sounds whose pitch is known."""

from __future__ import annotations

import base64
import io

import av
import numpy as np
import pytest

from personaplex.drawing.png import SHADES, address, ink
from personaplex.report.spectrogram import COLUMN_SAMPLES, ROWS, row_of, spectrogram
from personaplex.units import SAMPLE_RATE


def decoded(png: bytes) -> np.ndarray:
    """Red, green, blue and opacity [rows, columns, 4], from 0 to 1."""
    with av.open(io.BytesIO(png), mode="r") as picture:
        return next(picture.decode(video=0)).to_ndarray(format="rgba") / 255


def test_ink_is_black_and_as_opaque_as_the_value() -> None:
    values = np.linspace(0, 1, 60).reshape(5, 12)
    found = decoded(ink(values))
    assert found.shape == (5, 12, 4) and not found[..., :3].any()
    assert np.abs(found[..., 3] - values).max() <= 0.5 / (SHADES - 1) + 0.003
    assert found[0, 0, 3] == 0 and found[-1, -1, 3] == 1, "the first row is on top"


def test_what_is_beyond_the_scale_is_cut_and_what_is_no_number_is_nothing() -> None:
    assert decoded(ink(np.array([[-1.0, 2.0, np.nan]])))[0, :, 3].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="at least one of each"):
        ink(np.zeros((3, 0)))


def test_the_address_holds_the_picture() -> None:
    png = ink(np.eye(3))
    assert base64.b64decode(address(png).removeprefix("data:image/png;base64,")) == png


@pytest.mark.parametrize("hertz", [150.0, 1000.0, 5000.0])
def test_a_tone_is_a_line_at_its_pitch_while_it_sounds(hertz: float) -> None:
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    pcm = (0.3 * np.sin(2 * np.pi * hertz * t) * (t >= 0.5)).astype(np.float32)
    picture = spectrogram(pcm)
    assert picture.shape == (ROWS, SAMPLE_RATE // COLUMN_SAMPLES)
    assert not picture[:, :24].any() and picture[:, 27:-1].max(axis=0).min() > 0.95
    highest_first = 1 - picture[:, 40].argmax() / (ROWS - 1)
    assert highest_first == pytest.approx(row_of(hertz), abs=1.5 / ROWS)


def test_silence_is_nothing_and_softer_is_lighter() -> None:
    assert not spectrogram(np.zeros(5000, np.float32)).any() and spectrogram(np.zeros(0, np.float32)).shape == (ROWS, 1)
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 600 * t) * np.where(t < 0.5, 0.3, 0.003)  # 40 dB softer, of 65 that are drawn
    picture = spectrogram(tone.astype(np.float32))
    assert picture[:, 10].max() - picture[:, 40].max() == pytest.approx(40 / 65, abs=0.03)
