"""Sound in the formats of clients."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personaplex.errors import AudioError, UsageError
from personaplex.server.realtime.formats import Decoder, Encoder, Format, Kind, read_format

ALL = [Format("pcm16"), Format("pcm16", 16_000), Format("pcm16", 48_000), Format("f32"), Format("f32", 44_100)]
ALL += [Format("ulaw", 8_000), Format("alaw", 8_000)]


def tone(seconds: float, rate: int = 24_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("kind", "codec"), [("ulaw", "pcm_mulaw"), ("alaw", "pcm_alaw")])
def test_g711_is_that_of_ffmpeg_level_by_level(kind: Kind, codec: str) -> None:
    levels = np.arange(-32768, 32768).astype(np.int16)
    encoder = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = 24_000, "mono", "s16"  # type: ignore[attr-defined]
    frame = av.AudioFrame.from_ndarray(levels[None], format="s16", layout="mono")
    frame.sample_rate = 24_000
    theirs = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])  # type: ignore[attr-defined]
    ours = Encoder(Format(kind, 24_000)).push(levels.astype(np.float32) / 32767)
    # Where steps of two sizes meet FFmpeg takes the nearer one, the standard the lower: codes that are neighbours.
    inverted = 0xFF if kind == "ulaw" else 0x55
    mine, other = ((np.frombuffer(data, np.uint8) ^ inverted).astype(int) for data in (ours, theirs))
    assert np.array_equal(mine >> 7, other >> 7) and np.abs(mine - other).max() == 1
    assert np.mean(mine != other) < 0.02
    decoder = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = 24_000, "mono"  # type: ignore[attr-defined]
    (frame,) = decoder.decode(av.Packet(bytes(range(256))))  # type: ignore[attr-defined]
    assert np.array_equal(frame.to_ndarray().ravel(), Decoder(Format(kind, 24_000)).push(bytes(range(256))) * 32768)


@pytest.mark.parametrize("form", ALL, ids=str)
def test_what_goes_out_comes_in_again(form: Format) -> None:
    sound = tone(1.0)
    encoder, decoder = Encoder(form), Decoder(form)
    data = b"".join(encoder.push(sound[at : at + 1920]) for at in range(0, 24_000, 1920))
    data += encoder.push(np.zeros(0, np.float32), last=True)
    assert abs(len(data) - form.rate * {"pcm16": 2, "f32": 4}.get(form.kind, 1)) <= 8
    heard = decoder.push(data)[:20_000]
    assert np.abs(heard[2_000:] - sound[2_000 : len(heard)]).max() < (0.02 if form.kind in ("ulaw", "alaw") else 0.002)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ALL), st.lists(st.integers(0, 700), max_size=12))
def test_pieces_of_any_size_are_the_same_sound(form: Format, cuts: list[int]) -> None:
    data = Encoder(form._replace(rate=24_000)).push(tone(0.2))
    whole, pieces = Decoder(form), Decoder(form)
    heard, at = [], 0
    for n in cuts:
        heard.append(pieces.push(data[at : at + n]))
        at += n
    heard.append(pieces.push(data[at:]))
    assert np.allclose(np.concatenate(heard), whole.push(data), atol=1e-6)


def test_names_and_rates_are_checked() -> None:
    assert read_format("pcm16") == read_format("audio/pcm", 24_000) == Format("pcm16", 24_000)
    assert read_format("g711_ulaw") == read_format("audio/pcmu") == Format("ulaw", 8_000)
    assert read_format("audio/pcm", 8_000).ga == {"type": "audio/pcm", "rate": 8_000}
    for name, rate in (("opus", None), ("audio/pcmu", 16_000), ("pcm16", 7_999), ("pcm16", 10**9)):
        with pytest.raises(UsageError):
            read_format(name, rate)
    with pytest.raises(AudioError):
        Decoder(Format("f32")).push(np.array([0.0, np.nan], "<f4").tobytes())
