"""Sound as a file that is sent while it is made."""

from __future__ import annotations

import io

import numpy as np
import pytest

from personaplex.audio import read_audio
from personaplex.errors import UsageError
from personaplex.server.http.sound import MEDIA_TYPES, Form, SoundStream

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 24_000)).astype(np.float32)


def pieces(form: Form, speed: float, n_pieces: int = 20) -> list[bytes]:
    stream = SoundStream(form, speed)
    return [*(stream.push(piece) for piece in np.array_split(TONE, n_pieces)), stream.finish()]


def read(form: Form, data: bytes) -> np.ndarray:
    if form == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32767
    return read_audio(io.BytesIO(data))


@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_every_form_at_every_speed_holds_the_same_tone_for_its_time(form: Form, speed: float) -> None:
    found = read(form, b"".join(pieces(form, speed)))
    assert len(found) / 24_000 == pytest.approx(2 / speed, abs=0.1)
    spectrum = np.abs(np.fft.rfft(found))
    assert np.argmax(spectrum) * 24_000 / len(found) == pytest.approx(440, abs=5)  # as high as it was
    middle = found[len(found) // 3 : 2 * len(found) // 3]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_it_comes_while_it_is_made(form: Form) -> None:
    made = pieces(form, 1.0)
    assert sum(map(bool, made[:10])) > 2 and sum(map(len, made[:10])) > 0.3 * sum(map(len, made))


def test_plain_samples_and_wav_are_exact() -> None:
    samples = np.rint(np.clip(TONE, -1, 1) * 32767).astype("<i2").tobytes()
    assert b"".join(pieces("pcm", 1.0)) == samples
    data = b"".join(pieces("wav", 1.0))
    assert data[:4] == b"RIFF" and data[44:] == samples


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_nothing_is_a_file_too(form: Form) -> None:
    for speed in (1.0, 2.0):
        stream = SoundStream(form, speed)
        assert len(stream.push(np.zeros(0, np.float32)) + stream.finish()) < 200


@pytest.mark.parametrize(("form", "speed"), [("midi", 1.0), ("wav", 0.2), ("wav", 4.1), ("wav", float("nan"))])
def test_what_there_is_not_is_refused(form: Form, speed: float) -> None:
    with pytest.raises(UsageError):
        SoundStream(form, speed)
