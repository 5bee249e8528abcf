"""A real microphone and speaker, up to the library that reaches them: a sound card that only exists in this file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from personaplex.audio import read_audio
from personaplex.cli.main import main
from personaplex.errors import DeviceError
from personaplex.live.device import Captured, Hint, Lost
from personaplex.live.playout import Playout
from personaplex.live.sound_card import SoundCard, _Wire, list_devices, load_sounddevice, open_speaker
from personaplex.units import FRAME_SAMPLES


class PortAudioError(Exception):
    pass


class CallbackAbort(Exception):  # noqa: N818 - PortAudio's name
    pass


class Cards(ModuleType):
    """What `sounddevice` is to us. `rates` that work, `channels` that work, what `start` says."""

    PortAudioError = PortAudioError
    CallbackAbort = CallbackAbort

    def __init__(self, rates: tuple[int, ...] = (24_000,), channels: tuple[int, ...] = (1, 2), busy: str = "") -> None:
        super().__init__("sounddevice")
        self.rates, self.busy, self.channels = rates, busy, channels
        self.streams: list[Any] = []
        self.devices = [
            {
                "name": "mic",
                "index": 0,
                "max_input_channels": 2,
                "max_output_channels": 0,
                "default_samplerate": 48000.0,
            },
            {
                "name": "ear",
                "index": 1,
                "max_input_channels": 0,
                "max_output_channels": 2,
                "default_samplerate": 48000.0,
            },
        ]

    def query_devices(self, choice: str | int | None = None, kind: str | None = None) -> Any:
        if kind is None:
            return self.devices
        most = f"max_{kind}_channels"
        found = [d for d in self.devices if d[most] and choice in (None, d["name"], d["index"])]
        if not found and choice is None:
            raise PortAudioError("Error querying device -1")
        if not found:
            raise ValueError(f"No {kind} device matching {choice!r}")
        return found[0]

    def Stream(self, **options: Any) -> Any:  # noqa: N802
        if options["samplerate"] not in self.rates:
            raise PortAudioError("Error opening Stream: Invalid sample rate [PaErrorCode -9997]")
        if options["channels"][0] not in self.channels:
            raise PortAudioError("Error opening Stream: Invalid number of channels [PaErrorCode -9998]")
        stream = Opened(self.busy, **options)
        self.streams.append(stream)
        return stream

    def OutputStream(self, rate: int, **options: Any) -> Any:  # noqa: N802
        if rate not in self.rates:
            raise PortAudioError("Error opening Stream: Invalid sample rate [PaErrorCode -9997]")
        if options["channels"] not in self.channels:
            raise PortAudioError("Error opening Stream: Invalid number of channels [PaErrorCode -9998]")
        stream = Written(self.busy, samplerate=rate, finished_callback=lambda: None, **options)
        self.streams.append(stream)
        return stream


class Opened:
    latency = (0.02, 0.03)

    def __init__(self, busy: str, **options: Any) -> None:
        self.busy, self.options, self.open = busy, options, True

    def start(self) -> None:
        if self.busy:
            raise PortAudioError(self.busy)

    def abort(self) -> None:
        self.options["finished_callback"]()

    def close(self) -> None:
        self.open = False

    def turn(self, mic: np.ndarray) -> np.ndarray:
        n = len(mic)
        sound = np.repeat(mic[:, None], self.options["channels"][0], axis=1)
        out = np.empty((n, self.options["channels"][1]), np.float32)
        self.options["callback"](sound, out, n, None, None)
        return out


class Written(Opened):
    """A stream that is written to. `heard_out`: it was stopped, which waits for what was written."""

    heard_out = False

    def __init__(self, busy: str, **options: Any) -> None:
        super().__init__(busy, **options)
        self.blocks: list[np.ndarray] = []

    def write(self, block: np.ndarray) -> None:
        assert block.dtype == np.float32 and block.ndim == 2 and self.open
        self.blocks.append(block)

    def stop(self) -> None:
        self.heard_out = True


Plug = Callable[..., Cards]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Plug:
    def insert(**options: Any) -> Cards:
        cards = Cards(**options)
        monkeypatch.setitem(sys.modules, "sounddevice", cards)
        return cards

    return insert


def taken(queue: Queue[Any]) -> list[Any]:
    return [queue.get() for _ in range(queue.qsize())]


def test_what_is_recorded_comes_with_what_was_played_at_the_same_time(plug: Plug) -> None:
    cards, queue, playout = plug(), Queue[Any](), Playout()
    card = SoundCard()
    card.start(playout, queue.put)
    for _ in range(3):
        playout.push(np.full(FRAME_SAMPLES, 0.5, np.float32))
    played = [cards.streams[0].turn(np.full(480, level, np.float32)) for level in (0.1, 0.2)]
    assert all((out == 0.5).all() and out.shape == (480, 2) for out in played)
    pieces = taken(queue)
    assert [float(piece.mic[0]) for piece in pieces] == pytest.approx([0.1, 0.2])
    assert all((piece.far == 0.5).all() and len(piece.far) == 480 for piece in pieces)
    assert card.delay_seconds == pytest.approx(0.05)
    card.check()
    card.stop()
    assert not cards.streams[0].open and taken(queue) == [], "our own stop is no news"


def test_a_card_with_another_rate_or_only_stereo_is_used_as_it_is(plug: Plug) -> None:
    cards, queue = plug(rates=(48_000,), channels=(2,)), Queue[Any]()
    SoundCard("mic", 1).start(Playout(), queue.put)
    stream = cards.streams[-1]
    assert (stream.options["samplerate"], stream.options["channels"]) == (48_000, (2, 2))
    t = np.arange(48_000) / 48_000
    tone = np.sin(2 * np.pi * 500 * t).astype(np.float32)
    for start in range(0, 48_000, 960):
        stream.turn(tone[start : start + 960])
    pieces = taken(queue)
    heard = np.concatenate([piece.mic for piece in pieces])
    assert all(len(piece.mic) == len(piece.far) and len(piece.mic) % 240 == 0 for piece in pieces)
    assert 23_000 < len(heard) <= 24_000 and np.abs(np.fft.rfft(heard)).argmax() * 24_000 / len(heard) == pytest.approx(
        500, abs=2
    )


def test_no_device_no_library_and_a_wrong_name_are_one_line_each(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = plug()
    with pytest.raises(DeviceError, match=r"no speaker 'phone' was found.*--list-devices"):
        SoundCard(None, "phone")
    assert len(list_devices()) == 2
    cards.devices.clear()
    with pytest.raises(DeviceError, match="no microphone was found; plug one in, or give --input"):
        SoundCard()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DeviceError, match=r"pip install 'personaplex-mlx\[talk\]'"):
        load_sounddevice()


def test_without_portaudio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(DeviceError, match="apt-get install libportaudio2"):
        load_sounddevice()


def test_a_busy_device_is_said_to_be(plug: Plug) -> None:
    cards, queue = plug(busy="Error starting stream: Device unavailable [PaErrorCode -9985]"), Queue[Any]()
    with pytest.raises(DeviceError, match="mic and ear: in use by another program"):
        SoundCard().start(Playout(), queue.put)
    assert not any(stream.open for stream in cards.streams) and queue.empty()


def test_a_rate_that_nothing_can_do(plug: Plug) -> None:
    plug(rates=())
    with pytest.raises(DeviceError, match=r"cannot be opened together: .*Invalid sample rate"):
        SoundCard().start(Playout(), Queue[Any]().put)


def test_unplugged_is_told_by_the_driver_or_by_its_silence(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    cards, queue = plug(), Queue[Any]()
    card = SoundCard()
    card.check()
    card.start(Playout(), queue.put)
    cards.streams[0].options["finished_callback"]()
    (lost,) = taken(queue)
    assert isinstance(lost, Lost) and "unplugged" in str(lost.error)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3)
    with pytest.raises(DeviceError, match="unplugged"):
        card.check()


def test_a_driver_that_never_closes_is_left_behind(plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    """PortAudio's JACK driver waits for ever when the server is gone."""
    monkeypatch.setattr("personaplex.live.sound_card.CLOSE_SECONDS", 0.05)
    cards, held = plug(rates=(48_000,)), threading.Event()
    card = SoundCard()
    card.start(Playout(), Queue[Any]().put)
    cards.streams[-1].abort = lambda: held.wait(10)
    began = time.monotonic()
    card.stop()
    assert time.monotonic() - began < 5
    held.set()


def test_an_error_in_the_callback_ends_the_talk_and_not_in_a_traceback(plug: Plug) -> None:
    cards, queue = plug(), Queue[Any]()
    SoundCard().start(Playout(), queue.put)
    no_sound = np.full((480, 1), None)
    with pytest.raises(CallbackAbort):
        cards.streams[0].options["callback"](no_sound, np.zeros((480, 2), np.float32), 480, None, None)
    assert isinstance(taken(queue)[0], Lost)


def test_a_microphone_that_is_held_back_is_noticed_once() -> None:
    queue = Queue[Any]()
    wire = _Wire(24_000, Playout(), queue.put)
    for _ in range(400):
        wire.exchange(np.zeros(480, np.float32), 480)
    hints = [item for item in taken(queue) if isinstance(item, Hint)]
    assert len(hints) == 1 and "Microphone" in hints[0].text
    wire = _Wire(24_000, Playout(), queue.put)
    wire.exchange(np.full(480, 1e-4, np.float32), 480)
    for _ in range(400):
        wire.exchange(np.zeros(480, np.float32), 480)
    assert all(isinstance(item, Captured) for item in taken(queue))


@pytest.mark.parametrize(
    ("rates", "channels", "gain"), [((24_000,), (1, 2), 1), ((48_000,), (1, 2), 2), ((48_000,), (2,), 2)]
)
def test_a_speaker_plays_what_is_written_to_its_end(
    plug: Plug, rates: tuple[int, ...], channels: tuple[int, ...], gain: int
) -> None:
    cards = plug(rates=rates, channels=channels)
    pcm = (0.2 * np.sin(np.arange(24_000) / 20)).astype(np.float32)
    with open_speaker() as play:
        for start in range(0, len(pcm), 7_000):
            play(pcm[start : start + 7_000])
    (stream,) = cards.streams
    played = np.concatenate(stream.blocks)
    assert played.shape == (gain * len(pcm), min(channels)) and stream.heard_out and not stream.open
    assert np.abs(played[::gain, 0] - pcm)[200:-200].max() < 0.01


def test_a_speaker_that_cannot_be_used_is_one_line_and_a_broken_off_text_is_not_played_out(plug: Plug) -> None:
    cards = plug(rates=())
    with (
        pytest.raises(DeviceError, match=r"the speaker cannot be used: .*sample rate.*; --output writes a file"),
        open_speaker(),
    ):
        pass
    cards = plug()
    with pytest.raises(KeyError), open_speaker() as play:
        play(np.zeros(99, np.float32))
        raise KeyError
    assert not cards.streams[0].heard_out and not cards.streams[0].open


def test_speak_plays_where_there_is_a_speaker_and_says_what_to_do_where_there_is_none(
    plug: Plug, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cards = plug(rates=(48_000,))
    output = tmp_path / "a.wav"
    assert main(["speak", "Hello there. And good day.", "--play", "--output", str(output)]) == 0
    (both,) = cards.streams
    assert main(["speak", "Hello there. And good day."]) == 0
    played = np.concatenate(cards.streams[1].blocks)
    assert np.array_equal(played, np.concatenate(both.blocks)) and cards.streams[1].heard_out
    assert len(played) == 2 * len(read_audio(output)) and np.abs(played).max() > 0.1
    cards.devices.clear()
    assert main(["speak", "Hello there."]) == DeviceError.exit_code
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(["speak", "Hello there."]) == DeviceError.exit_code
    *_, no_device, no_library = capsys.readouterr().err.splitlines()
    assert no_device == (
        "personaplex: the speaker cannot be used: Error querying device -1; --output writes a file instead"
    )
    assert "pip install 'personaplex-mlx[talk]'; or write a file with --output" in no_library
