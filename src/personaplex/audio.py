"""Recordings in and out: any container, rate and channel count in; 24 kHz mono float32 inside.

Decoding, resampling and loudness are libsndfile's, FFmpeg's, soxr's and pyloudnorm's work; this file checks and joins.
"""

from __future__ import annotations

import math
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
import soundfile
import soxr

from personaplex.errors import AudioError, OutputError, UsageError
from personaplex.files import whole_file
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

LONGEST_SECONDS = 3600.0
"""Longest recording read unless the caller says otherwise: a slip of the hand should not take a day."""

VOICE_LUFS = -24.0
"""Loudness of a voice prompt (reference lm.py)."""

CONTAINERS = "wav,w64,aiff,au,caf,flac,mp3,aac,ogg,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,amr,asf"
"""FFmpeg's names of what a recording may be. Playlists are not among them: one could name any file of this machine."""

OUTPUT_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}

LOUDEST_SAMPLE = 1000.0
"""Full scale is 1: what lies this far beyond it is no sound, and in the codec's arithmetic might overflow."""

_BLOCK = 1 << 16
_IN_MEMORY = 64 << 20
"""Bytes of standard input that are kept in memory; of more, all go to a temporary file."""
_ENDLESS = 1 << 62
"""Frames that libsndfile claims for a FLAC stream whose header does not say; at its end it fails."""
_STREAMED_SIZE = 0x7FFF_0000
"""RIFF sizes from here on mean "unknown": a program that writes to a pipe cannot go back and fill them in."""


def opus_codecs() -> list[str]:
    """The Opus decoder and encoder that PyAV brings here, by name; fewer than two where one is missing."""
    found = []
    with suppress(av.codec.codec.UnknownCodecError):
        found.append(f"{av.codec.Codec('opus', 'r').name} (reads)")
    with suppress(av.codec.codec.UnknownCodecError):
        found.append(f"{av.codec.Codec('libopus', 'w').name} (writes)")
    return found


def read_audio(source: str | Path | BinaryIO, longest_seconds: float = LONGEST_SECONDS) -> np.ndarray:
    """Read a recording as float32 [S], 24 kHz, channels averaged. `-` is standard input; an open file is closed.

    Raises AudioError when it is missing, empty, cut short, too long, not audio, or holds NaN or infinity.
    """
    return np.concatenate([*stream_audio(source, longest_seconds)])


def read_channels(source: str | Path | BinaryIO, longest_seconds: float = LONGEST_SECONDS) -> np.ndarray:
    """Read a recording as `read_audio` does, its channels apart: float32 [S, channels], 24 kHz."""
    return np.concatenate([*_stream(source, longest_seconds, mixes=False)])


def stream_audio(source: str | Path | BinaryIO, longest_seconds: float = math.inf) -> Generator[np.ndarray, None, None]:
    """Read a recording as `read_audio` does, a few seconds [S] at a time: any length in little memory."""
    yield from _stream(source, longest_seconds, mixes=True)


def _stream(source: str | Path | BinaryIO, longest_seconds: float, *, mixes: bool) -> Generator[np.ndarray, None, None]:
    name, opened = _open(source)
    with nullcontext() if isinstance(opened, str) else opened:
        n_given = 0
        try:
            with soundfile.SoundFile(opened, closefd=False) as sound:
                if sound.frames < _ENDLESS:
                    rate, blocks = sound.samplerate, _soundfile_blocks(sound, name, longest_seconds)
                    for piece in _resampled(blocks, rate, name, longest_seconds, mixes=mixes):
                        n_given += len(piece)
                        yield piece
                    return
        except (soundfile.LibsndfileError, TypeError) as error:  # the second for a name that ends in .raw
            if n_given:
                at = _clock(n_given / SAMPLE_RATE)
                raise AudioError(f"{name} was cut short or is damaged: it cannot be read beyond {at}") from error
        if not isinstance(opened, str):
            opened.seek(0)
        try:
            with av.open(opened, mode="r", options={"format_whitelist": CONTAINERS}) as container:
                if not container.streams.audio:
                    raise AudioError(f"{name} holds no sound; give a recording (WAV, FLAC, MP3, Ogg, M4A, ...)")
                rate = container.streams.audio[0].codec_context.sample_rate
                yield from _resampled(_av_blocks(container), rate, name, longest_seconds, mixes=mixes)
        except av.FFmpegError as error:
            raise AudioError(
                f"{name} is not a recording that can be read: not WAV, FLAC, MP3, Ogg, M4A, ..."
            ) from error


def _open(source: str | Path | BinaryIO) -> tuple[str, str | BinaryIO]:
    if not isinstance(source, str | Path):
        return "the recording", source
    if str(source) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise AudioError("standard input is a terminal; pipe a recording into it or name a file")
        # Readers of most formats must be able to go back, which a pipe cannot.
        copy = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by whoever reads it
        shutil.copyfileobj(sys.stdin.buffer, copy)
        if not copy.tell():
            copy.close()
            raise AudioError("standard input is empty; pipe a recording into it")
        copy.seek(0)
        return "standard input", cast(BinaryIO, copy)
    path = Path(source)
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a folder; name a recording")
        if path.stat().st_size == 0:
            raise AudioError(f"{path} is empty (0 bytes)")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist") from None
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from error
    return str(path), str(path)


def _soundfile_blocks(sound: soundfile.SoundFile, name: str, longest_seconds: float) -> Iterator[np.ndarray]:
    _check_length(sound.frames / sound.samplerate, name, longest_seconds)
    promised = _promised_bytes(sound)
    if promised is not None:
        raise AudioError(f"{name} was cut short: its header promises {promised} bytes of sound that are not there")
    n_read = 0
    # `sound.blocks` hands out memory that nobody wrote where fewer samples follow than an MP3 file promised.
    n_at_once = max(1, _BLOCK // sound.channels)
    while len(block := sound.read(n_at_once, dtype="float32", always_2d=True)):
        n_read += len(block)
        yield block
    if n_read < sound.frames - sound.samplerate // 2:
        raise AudioError(
            f"{name} was cut short: of {sound.frames / sound.samplerate:.2f} s "
            f"only {n_read / sound.samplerate:.2f} s are there"
        )


def _promised_bytes(sound: soundfile.SoundFile) -> int | None:
    """Bytes the data chunk claims, when libsndfile's log says that they are not all there."""
    for line in sound.extra_info.splitlines():
        words = line.replace(":", " ").split()
        if words[:1] == ["data"] and "should" in line and words[1].isdigit() and int(words[1]) < _STREAMED_SIZE:
            return int(words[1])
    return None


def _av_blocks(container: av.container.InputContainer) -> Iterator[np.ndarray]:
    planar = av.AudioResampler(format="fltp")
    for decoded in container.decode(audio=0):
        for frame in planar.resample(decoded):
            yield frame.to_ndarray().T


def _resampled(
    blocks: Iterable[np.ndarray], rate: int, name: str, longest_seconds: float, *, mixes: bool = True
) -> Iterator[np.ndarray]:
    """Blocks [n, channels] at `rate` -> float32 [S] at 24 kHz, or [S, channels] unless it `mixes`, block by block.

    Never nothing at all.
    """
    resampler = None
    n_read = n_given = 0
    for block in blocks:
        heard = (block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]) if mixes else block
        if not np.isfinite(heard).all():
            finite = np.isfinite(heard.reshape(len(heard), -1)).all(axis=1)
            at = (n_read + int(np.flatnonzero(~finite)[0])) / rate
            raise AudioError(f"{name} holds samples that are not numbers (NaN or infinity), the first at {at:.3f} s")
        n_read += len(heard)
        _check_length(n_read / rate, name, longest_seconds)
        if rate != SAMPLE_RATE and resampler is None:
            resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1 if mixes else block.shape[1], dtype="float32")
        piece = resampler.resample_chunk(heard) if resampler else heard
        n_given += len(piece)
        yield piece
    if n_read == 0:
        raise AudioError(f"{name} holds no samples")
    if resampler:
        piece = resampler.resample_chunk(heard[:0], last=True)
        n_given += len(piece)
        yield piece
    if not n_given:
        raise AudioError(f"{name} is too short to be heard: {n_read} samples at {rate} Hz")


def _check_length(seconds: float, name: str, longest_seconds: float) -> None:
    if not seconds <= longest_seconds:
        raise AudioError(
            f"{name} is {_clock(seconds)} long or longer; at most {_clock(longest_seconds)} is read; "
            "cut it, or raise the limit where it is yours (--max-input-seconds)"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def as_mono(samples: np.ndarray, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples in memory ([S] or [S, channels], any float or int16) -> float32 [S] at 24 kHz.

    Raises AudioError as `read_audio` does.
    """
    array = np.asarray(samples)
    if array.ndim == 2 and array.shape[1] > max(32, len(array)):
        raise AudioError(f"expected samples [S] or [S, channels], found {array.shape}; transpose it, or take one row")
    if array.dtype == np.int16:
        array = array.astype(np.float32) / 32768
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"expected samples [S] or [S, channels] of floats or int16, found {array.dtype} {array.shape}")
    blocks = [array.astype(np.float32).reshape(len(array), -1)] if array.size else []
    return np.concatenate([*_resampled(blocks, rate, "the array of samples", math.inf)])


def as_chunk(samples: np.ndarray) -> np.ndarray:
    """A piece of a 24 kHz mono stream ([S], any float or int16) -> float32 [S].

    Raises AudioError for another type or shape, and for samples that are not finite or beyond all loudness.
    """
    array = np.asarray(samples)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / 32768
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"expected mono samples [S] of floats or int16, found {array.dtype} {array.shape}")
    with np.errstate(over="ignore"):
        chunk = array.astype(np.float32)
    if not np.isfinite(chunk).all():  # after the cast: a float64 may be beyond all float32
        raise AudioError("the samples are not all finite numbers")
    if len(chunk) and (peak := float(np.abs(chunk).max())) > LOUDEST_SAMPLE:
        raise AudioError(f"a sample is {peak:.3g}; full scale is 1, so these are no samples of sound")
    return chunk


def write_audio(path: Path, pcm: np.ndarray) -> None:
    """Write 24 kHz mono from 16-bit samples, clipped to [-1, 1], whole or not at all.

    Raises OutputError when it cannot be written, UsageError for an unknown suffix.
    """
    with audio_file(path) as write:
        # In pieces: libsndfile's Vorbis encoder overflows its stack on minutes at once.
        for start in range(0, len(pcm), SAMPLE_RATE):
            write(pcm[start : start + SAMPLE_RATE])


@contextmanager
def audio_file(path: Path, channels: int = 1) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield what writes a piece [S] or [S, channels] of 24 kHz sound (16 bit, clipped), as long as it is made.

    The file is there when the block has ended well, and not at all if not. Raises as `write_audio` does.
    """
    check_format(path)
    with whole_file(path) as temporary:
        try:
            kind = OUTPUT_FORMATS[path.suffix.lower()]
            with soundfile.SoundFile(temporary, "w", SAMPLE_RATE, channels, format=kind) as sound:
                yield lambda pcm: _write(sound, pcm16(pcm))
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error


def _write(sound: soundfile.SoundFile, samples: np.ndarray) -> None:
    try:
        sound.write(samples)
    # The first is how soundfile tells that fewer samples were written than given.
    except (AssertionError, soundfile.LibsndfileError) as error:
        raise OSError("not all of the sound could be written; is the disk full?") from error


def pcm16(pcm: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] (clipped to it) as 16-bit integers."""
    return np.asarray(np.rint(np.clip(pcm, -1.0, 1.0) * 32767), "<i2")


def wav_header(n_samples: int | None, channels: int = 1) -> bytes:
    """A 16-bit WAV header; a stream of unknown length gets the sizes that players take for endless."""
    data = 0xFFFF_FFFF if n_samples is None else 2 * channels * n_samples
    riff = 0xFFFF_FFFF if n_samples is None else 36 + data
    fmt = struct.pack("<IHHIIHH", 16, 1, channels, SAMPLE_RATE, 2 * channels * SAMPLE_RATE, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", data)


def check_format(path: Path) -> None:
    """Raise UsageError unless the suffix names a format that can be written, OutputError for a folder."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file to write")
    if path.suffix.lower() not in OUTPUT_FORMATS:
        raise UsageError(f"{path}: the suffix must be one of {', '.join(OUTPUT_FORMATS)}")


def normalise_loudness(pcm: np.ndarray, name: str, lufs: float = VOICE_LUFS) -> np.ndarray:
    """One linear gain to `lufs` (BS.1770-4), no limiter.

    Raises AudioError for less than 0.4 s or for silence, whose loudness is undefined.
    """
    from pyloudnorm.meter import Meter  # imports scipy: half a second that only voice cloning pays

    if len(pcm) < 0.4 * SAMPLE_RATE:
        raise AudioError(f"{name} is {len(pcm) / SAMPLE_RATE:.2f} s long; a voice prompt needs at least 0.4 s")
    loudness = float(Meter(SAMPLE_RATE).integrated_loudness(pcm.astype(np.float64)))
    if not math.isfinite(loudness):
        raise AudioError(f"{name} is silent; a voice prompt needs speech")
    return np.asarray(pcm * 10 ** ((lufs - loudness) / 20), np.float32)


class Framer:
    """Cuts a stream of any chunks into whole frames: what comes out does not depend on how it went in."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)

    @property
    def rest(self) -> np.ndarray:
        """What is kept of a frame that is not whole yet."""
        return self._rest

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """The frames [1920] that are complete with these samples; the rest is kept."""
        joined = np.concatenate([self._rest, np.asarray(samples, np.float32).reshape(-1)])
        whole = len(joined) - len(joined) % FRAME_SAMPLES
        self._rest = joined[whole:]
        yield from joined[:whole].reshape(-1, FRAME_SAMPLES)

    def flush(self) -> Iterator[np.ndarray]:
        """The last frame, padded with zeros, if anything is left."""
        if len(self._rest):
            yield np.pad(self._rest, (0, FRAME_SAMPLES - len(self._rest)))
            self._rest = np.zeros(0, np.float32)


def rms(pcm: np.ndarray) -> float:
    """Root mean square of samples."""
    return float(np.sqrt(np.mean(np.square(pcm, dtype=np.float64)))) if len(pcm) else 0.0
