"""A real microphone and speaker, through PortAudio (the `sounddevice` package): one stream for both, so one clock."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, Literal

import numpy as np
import soxr

from personaplex.errors import DeviceError
from personaplex.live.device import Captured, Hint, Lost, Put
from personaplex.live.echo import BLOCK
from personaplex.live.playout import Playout
from personaplex.units import SAMPLE_RATE

BLOCKS_PER_SECOND = 50
"""A block is 20 ms: short beside a frame, long beside what Python needs for it."""

GONE_SECONDS = 2.0
"""A device that has not asked for sound for so long is gone: some drivers just fall silent when it is unplugged."""

CLOSE_SECONDS = 2.0
"""How long a stream is given to close."""

MUTE_SECONDS = 3.0
"""Nothing but zeros for so long is no quiet room: the system is holding the microphone back."""

DENIED = (
    "the microphone gives nothing but zeros: is it muted? On a Mac, allow this terminal in System Settings, "
    "Privacy & Security, Microphone, and start it again"
)


def load_sounddevice(otherwise: str = "or give --input and --output") -> ModuleType:
    """The `sounddevice` module. Raises DeviceError saying what to install, or what to do `otherwise`."""
    try:
        import sounddevice
    except ImportError as error:
        raise DeviceError(
            f"a microphone or speaker needs the sounddevice package: pip install 'personaplex-mlx[talk]'; {otherwise}"
        ) from error
    except OSError as error:
        raise DeviceError(
            f"the PortAudio library was not found; install it (Debian: apt-get install libportaudio2), {otherwise}"
        ) from error
    assert isinstance(sounddevice, ModuleType)
    return sounddevice


def list_devices() -> list[str]:
    """A line for every device, as --microphone and --speaker take it. Raises DeviceError."""
    sd = load_sounddevice()
    return [
        f"{number:3}  {device['name']}  ({device['max_input_channels']} in, {device['max_output_channels']} out)"
        for number, device in enumerate(sd.query_devices())
    ]


def default_device(what: Literal["microphone", "speaker"]) -> str:
    """The name of the system's own microphone or speaker. Raises DeviceError when there is none."""
    return str(_found(load_sounddevice(), None, what)["name"])


def _found(sd: ModuleType, choice: str | int | None, what: Literal["microphone", "speaker"]) -> dict[str, Any]:
    try:
        found = sd.query_devices(choice, "input" if what == "microphone" else "output")
    except (ValueError, sd.PortAudioError) as error:
        if choice is None:
            raise DeviceError(f"no {what} was found; plug one in, or give --input and --output") from error
        raise DeviceError(f"no {what} {choice!r} was found: {error}; --list-devices shows all") from error
    assert isinstance(found, dict)
    return found


class SoundCard:
    """The microphone and speaker of these names or numbers (None: the system's own).

    Runs at 24 kHz where the device can, else at its own rate, resampled. Raises DeviceError when there is none.
    """

    def __init__(self, microphone: str | int | None = None, speaker: str | int | None = None) -> None:
        self._sd = load_sounddevice()
        self._microphone = _found(self._sd, microphone, "microphone")
        self._speaker = _found(self._sd, speaker, "speaker")
        self._stream: Any = None
        self._asked_at = 0.0
        self._stopping = threading.Event()

    @property
    def delay_seconds(self) -> float:
        """The stream's own latency, out and in again."""
        return float(sum(self._stream.latency))

    def start(self, playout: Playout, put: Put) -> None:
        """Open the stream, at the first rate and number of channels that the devices take."""
        error: Exception | None = None
        for rate in self._rates():
            for channels in self._channels():
                try:
                    self._open(rate, channels, playout, put)
                except self._sd.PortAudioError as refused:
                    error = error or refused
                else:
                    return
        raise DeviceError(self._refusal(error)) from error

    def proceed(self) -> None:
        """Time passes by itself."""

    def check(self) -> None:
        """Raise DeviceError if it has not asked for sound lately."""
        if self._stream is not None and time.monotonic() - self._asked_at > GONE_SECONDS:
            raise DeviceError("the sound device has stopped; was it unplugged?")

    def stop(self) -> None:
        """Close the stream; what is wrong with it now does not matter any more."""
        self._stopping.set()
        if self._stream is not None:
            # Some drivers wait for ever for a device that is gone; nobody waits for them.
            closing = threading.Thread(target=self._close, daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
            if closing.is_alive():
                # Nor must the end of the program: the library would ask the same driver again.
                if (ending := getattr(self._sd, "_exit_handler", None)) is not None:
                    atexit.unregister(ending)
                self._wire.release()

    def _close(self) -> None:
        with suppress(self._sd.PortAudioError):
            self._stream.abort()
        with suppress(self._sd.PortAudioError):
            self._stream.close()

    def _rates(self) -> list[int]:
        own = [round(device["default_samplerate"]) for device in (self._microphone, self._speaker)]
        return list(dict.fromkeys([SAMPLE_RATE, *own, 48_000]))

    def _channels(self) -> list[tuple[int, int]]:
        most = (self._microphone["max_input_channels"], self._speaker["max_output_channels"])
        # Many a card knows no mono.
        return [(i, o) for i, o in ((1, 2), (1, 1), (2, 2)) if i <= most[0] and o <= most[1]]

    def _open(self, rate: int, channels: tuple[int, int], playout: Playout, put: Put) -> None:
        wire = _Wire(rate, playout, put)

        def callback(mic: np.ndarray, out: np.ndarray, n: int, times: object, status: object) -> None:  # noqa: ARG001
            self._asked_at = time.monotonic()
            try:
                out[:] = wire.exchange(mic.mean(axis=1), n)[:, None]
            except Exception as error:  # an exception that leaves here would be a traceback on the person's screen
                out[:] = 0
                put(Lost(DeviceError(f"the sound device cannot be used: {error}")))
                raise self._sd.CallbackAbort from None

        def finished() -> None:
            if not self._stopping.is_set():
                put(Lost(DeviceError("the sound device has stopped; was it unplugged?")))

        stream = self._sd.Stream(
            samplerate=rate,
            blocksize=rate // BLOCKS_PER_SECOND,
            device=(self._microphone["index"], self._speaker["index"]),
            channels=channels,
            dtype="float32",
            latency="low",
            callback=callback,
            finished_callback=finished,
        )
        self._asked_at = time.monotonic()
        try:
            stream.start()
        except self._sd.PortAudioError:
            self._stopping.set()  # its end is no news
            stream.close()
            self._stopping.clear()
            raise
        self._stream, self._wire = stream, wire

    def _refusal(self, error: Exception | None) -> str:
        names = f"{self._microphone['name']} and {self._speaker['name']}"
        if error is None:
            return f"{names}: a microphone needs an input channel and a speaker an output channel"
        if "unavailable" in str(error).lower() or "busy" in str(error).lower():
            return f"{names}: in use by another program; close it, or choose others (--list-devices)"
        return f"{names} cannot be opened together: {error}; choose others (--list-devices)"


class _Wire:
    """Between the device's rate and ours. What leaves it as `Captured` is of the same time, sample by sample."""

    def __init__(self, rate: int, playout: Playout, put: Put) -> None:
        self._block = SAMPLE_RATE // BLOCKS_PER_SECOND
        self._playout, self._put = playout, put
        same = rate == SAMPLE_RATE
        self._to_us = None if same else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="MQ")
        self._to_device = None if same else soxr.ResampleStream(SAMPLE_RATE, rate, 1, dtype="float32", quality="MQ")
        self._mic = self._far = self._out = np.zeros(0, np.float32)
        self._n_zeros: int | None = 0

    def exchange(self, mic: np.ndarray, n_samples: int) -> np.ndarray:
        """The device's samples [S] for `n_samples` of ours, both at its rate."""
        while len(self._out) < n_samples:
            far = self._playout.pull(self._block)
            self._far = np.concatenate([self._far, far])
            played = self._to_device.resample_chunk(far) if self._to_device is not None else far
            self._out = np.concatenate([self._out, played])
        out, self._out = self._out[:n_samples], self._out[n_samples:]
        heard = self._to_us.resample_chunk(mic) if self._to_us is not None else mic
        self._mic = np.concatenate([self._mic, heard])
        self._hand_over()
        return out

    def release(self) -> None:
        """Let the resamplers go: a stream that never closes would keep them beyond the program's end."""
        self._to_us = self._to_device = None

    def _hand_over(self) -> None:
        n = min(len(self._mic), len(self._far), self._block) // BLOCK * BLOCK
        if n:
            mic, self._mic = self._mic[:n], self._mic[n:]
            far, self._far = self._far[:n], self._far[n:]
            self._watch(mic)
            self._put(Captured(mic, far))

    def _watch(self, mic: np.ndarray) -> None:
        if self._n_zeros is None:
            return
        self._n_zeros = None if mic.any() else self._n_zeros + len(mic)
        if self._n_zeros is not None and self._n_zeros >= MUTE_SECONDS * SAMPLE_RATE:
            self._n_zeros = None
            self._put(Hint(DENIED))


@contextmanager
def open_speaker(speaker: str | int | None = None) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield what plays a piece [S] of 24 kHz sound, and waits while much of the last is to be heard yet.

    A block that ends well is heard to its end. Raises DeviceError.
    """
    sd = load_sounddevice("or write a file with --output")
    try:
        device = sd.query_devices(speaker, "output")
        stream, channels, rate = _open_output(sd, device)
        resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(SAMPLE_RATE, rate, 1, dtype="float32")

        def play(pcm: np.ndarray, last: bool = False) -> None:
            played = pcm if resampler is None else resampler.resample_chunk(pcm, last=last)
            if len(played):
                stream.write(np.repeat(np.asarray(played, np.float32)[:, None], channels, axis=1))

        try:
            stream.start()
            yield play
            play(np.zeros(0, np.float32), last=True)
            stream.stop()
        finally:
            stream.close()
    except (ValueError, sd.PortAudioError) as error:
        raise DeviceError(f"the speaker cannot be used: {error}; --output writes a file instead") from error


def _open_output(sd: ModuleType, device: dict[str, Any]) -> tuple[Any, int, int]:
    """An output stream, its channels and its rate: ours if it can, and mono if it knows that."""
    rates = dict.fromkeys([SAMPLE_RATE, round(device["default_samplerate"])])
    refused: Exception | None = None
    for rate in rates:
        for channels in (1, 2):
            try:
                stream = sd.OutputStream(rate, device=device["index"], channels=channels, dtype="float32")
            except sd.PortAudioError as error:
                refused = refused or error
            else:
                return stream, channels, rate
    assert refused is not None
    raise refused


def play_sound(pcm: np.ndarray, speaker: str | int | None = None) -> None:
    """Play samples [S] at 24 kHz to their end. Raises DeviceError."""
    with open_speaker(speaker) as play:
        play(pcm)
