"""Recordings of every kind in, whole files out."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from personaplex.audio import Framer, as_chunk, as_mono, read_audio, rms, write_audio
from personaplex.errors import AudioError, OutputError, UsageError
from personaplex.units import FRAME_SAMPLES, frames_in


def tone(rate: int, seconds: float = 0.7) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_24_khz_mono(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.repeat(tone(rate)[:, None], channels, axis=1), rate, subtype="FLOAT")
    found, wanted = read_audio(path), tone(24_000)
    assert found.dtype == np.float32 and abs(len(found) - len(wanted)) <= 2
    middle = slice(3000, 13_000)
    assert np.abs(found[middle] - wanted[middle]).max() < 2e-3


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "aiff"])
def test_libsndfiles_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(24_000), 24_000)
    assert rms(read_audio(path)) == pytest.approx(0.3 / 2**0.5, rel=0.05)


def test_a_phones_format_through_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.repeat(tone(48_000)[None], 2, axis=0), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    found = read_audio(path)
    assert rms(found[2400:12_000]) == pytest.approx(0.3 / 2**0.5, rel=0.1)


def encoded(container: str, codec: str) -> bytes:
    """A file as a stream writes it: nobody goes back to fill in how long it is."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        seek = tell = None  # type: ignore[assignment]

    pipe = Pipe()
    with av.open(pipe, "w", format=container) as output:
        stream = output.add_stream(codec, rate=24_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        samples = np.rint(32767 * tone(24_000, 2.0)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 24_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return pipe.getvalue()


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus")])
def test_a_streamed_file_does_not_say_how_long_it_is(container: str, codec: str) -> None:
    found = read_audio(io.BytesIO(encoded(container, codec)))
    assert len(found) == pytest.approx(48_000, abs=2500)
    assert np.abs(found).max() < 0.5  # nothing but the tone, and silence around it


def test_a_playlist_is_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would read the file it names, or listen on the network."""
    (tmp_path / "secret.wav").write_bytes(wav(tone(24_000)))
    monkeypatch.chdir(tmp_path)
    concat = "ffconcat version 1.0\nfile secret.wav\n"
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
    with av.open(io.BytesIO(concat.encode())) as opened:
        assert opened.format.name == "concat"  # it is one
    for text in (concat, sdp):
        with pytest.raises(AudioError, match="not a recording"):
            read_audio(io.BytesIO(text.encode()))


def test_a_thousand_channels_take_no_more_memory_than_two(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    read = soundfile.SoundFile.read

    def watched(self: soundfile.SoundFile, frames: int, **more: Any) -> np.ndarray:
        seen.append(frames)
        return np.asarray(read(self, frames, **more))

    monkeypatch.setattr(soundfile.SoundFile, "read", watched)
    found = read_audio(io.BytesIO(wav(np.repeat(tone(24_000)[:, None], 1000, axis=1), subtype="PCM_16")))
    assert max(seen) * 1000 <= 1 << 16 and rms(found) == pytest.approx(0.3 / 2**0.5, rel=0.01)


def wav(samples: np.ndarray, rate: int = 24_000, subtype: str = "FLOAT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype=subtype)
    return out.getvalue()


SPOILED = tone(24_000)
SPOILED[12_000] = np.nan
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"hello there, this is no sound at all\n" * 20, "not a recording"),
    "header only": (wav(np.zeros(0, np.float32)), "holds no samples"),
    "cut short": (wav(tone(24_000), subtype="PCM_16")[:5000], "cut short"),
    "cut in the header": (wav(tone(24_000))[:20], "not a recording"),
    "nan": (wav(SPOILED), r"not numbers .* 0\.500 s"),
    "infinite": (wav(np.where(np.isnan(SPOILED), np.inf, SPOILED)), "not numbers"),
    "flac cut short": (None, "cut short|not a recording"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_one_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    data, says = BAD[kind]
    path = tmp_path / "bad.wav"
    if data is None:
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 72_000), 24_000, format="FLAC")
        data = path.read_bytes()[:40_000]
    path.write_bytes(data)
    with pytest.raises(AudioError, match=says) as caught:
        read_audio(path)
    assert "bad.wav" in str(caught.value)


def test_missing_files_folders_and_pictures(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path)
    picture = tmp_path / "picture.png"
    picture.write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c"
            "6360000000020001e221bc330000000049454e44ae426082"
        )
    )
    with pytest.raises(AudioError, match=r"no sound|not a recording"):
        read_audio(picture)


def test_a_header_written_to_a_pipe_is_taken_to_its_end(tmp_path: Path) -> None:
    """Programs that stream WAV cannot know the size; they write all ones."""
    data = bytearray(wav(tone(24_000), subtype="PCM_16"))
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4
    path = tmp_path / "streamed.wav"
    path.write_bytes(bytes(data))
    assert len(read_audio(path)) == len(tone(24_000))


def test_hours_are_refused_at_once_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(8000 * 60, np.int16), 8000)
    with pytest.raises(AudioError, match=r"0:01:00 long or longer; at most 0:00:59"):
        read_audio(path, longest_seconds=59)
    assert len(read_audio(path, longest_seconds=61)) == 24_000 * 60


def test_samples_in_memory() -> None:
    stereo = np.stack([tone(48_000), tone(48_000)], axis=1)
    assert abs(len(as_mono(stereo, 48_000)) - len(tone(24_000))) <= 2
    assert as_mono(np.array([16384], np.int16))[0] == 0.5
    for bad in (np.zeros((2, 2, 2)), np.zeros(3, np.int64), np.zeros(0), np.array([np.nan]), np.zeros((1, 24_000))):
        with pytest.raises(AudioError):
            as_mono(bad)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Piped:
        buffer = io.BytesIO(wav(tone(24_000)))

        @staticmethod
        def isatty() -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Piped)
    assert len(read_audio("-")) == len(tone(24_000))
    with pytest.raises(AudioError, match="standard input is empty"):
        read_audio("-")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_writing_clips_and_leaves_no_temporary_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write_audio(path, 3 * tone(24_000))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert np.abs(read_audio(path)).max() <= 1.2
    assert path.stat().st_mode & 0o044 == 0o044


def test_minutes_of_ogg(tmp_path: Path) -> None:
    """Given to the encoder at once they overflow its stack and end the process."""
    write_audio(tmp_path / "long.ogg", np.tile(tone(24_000, 1.0), 300))
    assert soundfile.info(tmp_path / "long.ogg").frames == 300 * 24_000


def test_a_name_does_not_decide_what_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "voice.raw").write_bytes(wav(tone(24_000)))
    assert len(read_audio(tmp_path / "voice.raw")) == len(tone(24_000))


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        write_audio(path, tone(24_000))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_audio(tmp_path / "no" / "out.wav", tone(24_000))
    (tmp_path / "out.wav").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_audio(tmp_path / "out.wav", tone(24_000))
    with pytest.raises(UsageError, match="suffix"):
        write_audio(tmp_path / "out.doc", tone(24_000))


@given(sizes=st.lists(st.integers(0, 4000), max_size=8))
def test_frames_do_not_depend_on_how_samples_arrive(sizes: list[int]) -> None:
    samples = np.arange(sum(sizes), dtype=np.float32)
    framer = Framer()
    pieces = np.split(samples, np.cumsum(sizes)[:-1]) if sizes else []
    frames = [frame for piece in pieces for frame in framer.push(piece)] + list(framer.flush())
    assert len(frames) == frames_in(len(samples))
    assert all(len(frame) == FRAME_SAMPLES for frame in frames)
    joined = np.concatenate([*frames, np.zeros(0, np.float32)])
    assert np.array_equal(joined[: len(samples)], samples) and not joined[len(samples) :].any()
    assert not list(framer.flush())


@pytest.mark.parametrize("bad", [np.array([0.0, 1e300]), np.array([np.inf], np.float32), np.array([0.0, -2e3])])
def test_a_piece_that_would_overflow_is_refused(bad: np.ndarray) -> None:
    """A float64 beyond all float32 becomes infinite only by the cast."""
    with pytest.raises(AudioError):
        as_chunk(bad)
    assert as_chunk(np.array([-1000.0, 1.5])).tolist() == [-1000.0, 1.5]
