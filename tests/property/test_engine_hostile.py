"""What callers do at the wrong moment, numbers that are none, and snapshots that were forged: nobody else notices."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gc
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.checkpoint import states
from personaplex.checkpoint.tensors import TensorFile
from personaplex.conversation import Audio, Degenerate, Ended, Error, Event, Overrun, Ready, Settings
from personaplex.engine.generator import Generator
from personaplex.errors import CheckpointError, Closed, OutputError, PersonaError, UsageError
from personaplex.guard import Guard
from personaplex.runtime.call import Call
from personaplex.runtime.device import Device
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import RECOVERIES, Limits
from personaplex.units import FRAME_SAMPLES
from tests.property.test_kept import hear, held_back, same, settings, sound
from tests.small import small_engine, small_model, tiny_engine

PLAIN = Limits(pinned_frames=40, voice_activity=None)
NOTHING = Settings(voice="", prompt="", seed=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with small_engine(1, PLAIN) as engine:
        yield engine


def talk(engine: Engine, how: Settings, pcm: np.ndarray) -> list[np.ndarray]:
    with engine.open(how) as call:
        return hear(call, pcm)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.002)


# Who sits where.


def test_a_frame_is_never_heard_by_the_next_in_the_slot(engine: Engine) -> None:
    """It waits while something else is done; meanwhile its owner leaves, and somebody else takes the slot."""
    expected = talk(engine, NOTHING, sound(3, 6))
    leaver = engine.open(settings(1))
    with leaver:
        hear(leaver, sound(1, 3))
        entered, go_on = threading.Event(), threading.Event()
        with held_back(engine):
            leaver.send(5 * sound(9, 1))

            def something_else() -> None:
                entered.set()
                go_on.wait(30)

            engine.submit(something_else)
        entered.wait(30)
        leaver.send(5 * sound(9, 1))
        leaver.close()
        call = engine.open(NOTHING)
        go_on.set()
        with call:
            said = hear(call, sound(3, 6))
    assert same(said, expected)


def test_a_conversation_that_is_not_ready_is_not_saved(engine: Engine, tmp_path: Path) -> None:
    """The slot still holds somebody else's."""
    path = tmp_path / "call.safetensors"
    talk(engine, settings(1), sound(1, 20))
    with held_back(engine):
        call = engine.open(settings(44))
        too_early = engine.submit(lambda: engine._capture(call._seat))
        saving = threading.Thread(target=call.save, args=(path,))
        saving.start()
    saving.join(30)
    with pytest.raises(UsageError, match="not ready"):
        too_early.result()
    call.close()
    with engine.load(path) as again:
        said = hear(again, sound(5, 4))
    assert same(said, talk(engine, settings(44), sound(5, 4)))
    with pytest.raises(PersonaError):
        engine.open(Settings(voice="no such voice")).save(path)


def test_numbers_that_are_none_are_wiped_when_their_owner_has_left(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, step = talk(engine, settings(2), sound(2, 4)), engine._device.step
    call = engine.open(settings(1))
    call.__enter__()

    def leave_meanwhile(*given: Any) -> Any:
        results = step(*given)
        call.close()
        return results

    monkeypatch.setattr(engine._device, "step", leave_meanwhile)
    engine.submit(lambda: poison(engine._device._state.generator.temporal)).result()
    call.send(sound(1, 1))
    assert list(call.events())[-1] == Ended(0, "closed")
    monkeypatch.undo()
    assert same(talk(engine, settings(2), sound(2, 4)), expected)


def poison(transformer: Any) -> None:
    for ring in transformer.rings:
        ring.k[0], ring.v[0] = mx.nan, mx.nan


def test_a_codec_that_hears_no_numbers_ends_the_conversation(engine: Engine) -> None:
    """Its codes are codes whatever it heard, so nothing that is said would show it."""
    expected = talk(engine, settings(1), sound(2, 4))
    with engine.open(settings(1)) as call:
        engine.submit(lambda: poison(engine._device._state.encoder.transformer)).result()
        call.send(sound(1, 1))
        with suppress(Closed):
            call.finish()
        signs = [event for event in call.events() if not isinstance(event, Ready)]
    assert signs[0] == Degenerate(0, "not finite")
    assert [type(sign) for sign in signs[1:]] == [Error, Ended]
    assert same(talk(engine, settings(1), sound(2, 4)), expected)


def test_nobody_waits_to_send_while_another_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_engine(2, PLAIN) as engine, engine.open(settings(1)) as call, engine.open(settings(2)) as other:
        begin, begun, go_on = engine._device.begin, threading.Event(), threading.Event()

        def slow(*given: Any) -> None:
            begun.set()
            go_on.wait(30)
            begin(*given)

        monkeypatch.setattr(engine._device, "begin", slow)
        call.update(prompt=[9, 9])
        begun.wait(30)
        sending = threading.Thread(target=other.send, args=(sound(1, 1),))
        sending.start()
        sending.join(5)
        waits = sending.is_alive()
        go_on.set()
        assert not waits


# The last seconds.


class Script(Guard):
    """A sign at frames that are known beforehand, counted since the guard was made."""

    at: int = 0

    def watch(self, *_: Any) -> Any:
        self.n = getattr(self, "n", 0) + 1
        return "noise" if self.n == self.at else None


@pytest.fixture
def nervous(monkeypatch: pytest.MonkeyPatch) -> type[Script]:
    monkeypatch.setattr("personaplex.runtime.seat.Guard", Script)
    monkeypatch.setattr(Script, "at", 0)
    return Script


def recovering(seconds: float) -> Limits:
    return dataclasses.replace(PLAIN, rewind_seconds=seconds, recover=True)


def age(call: Call) -> int:
    return call._seat.age


def test_recovering_never_ends_anything_and_is_not_tried_for_ever(nervous: type[Script]) -> None:
    """Signs that come again a second after each recovery, when no mark is two seconds old any more."""
    with (
        small_engine(2, recovering(2.0)) as engine,
        engine.open(settings(1)) as call,
        engine.open(settings(2)) as other,
    ):
        hear(call, sound(1, 100))
        nervous.at = 101
        said, ages = [], []
        for at in range(60):
            said += hear(call, sound(at, 1))
            nervous.at = 12
            ages.append(age(call))
            marked = [mark[0] for mark in call._seat.marks]
            assert marked == sorted(set(marked)) and marked[0] >= call._seat.furthest - engine.limits.spare_frames
        assert len(said) == 60 and sum(b < a for a, b in zip([100, *ages], ages, strict=False)) == RECOVERIES
        hear(other, sound(2, 2))


def test_what_changed_its_role_can_recover_and_be_set_back(nervous: type[Script]) -> None:
    with small_engine(1, recovering(3.0)) as engine, engine.open(settings(1)) as call:
        nervous.at = 5
        call.update(prompt=[9, 9])
        events = call.events()
        for _ in range(2):
            assert isinstance(events.get(30), Ready)
        hear(call, sound(1, 5))
        assert age(call) == 0  # at a frame where nothing is marked anew, it went back to where the role began
        nervous.at = 0
        first = hear(call, sound(2, 20))
        assert call.rewind(1.5) == 20
        assert same(hear(call, sound(2, 20)), first)


def test_a_conversation_goes_back_no_farther_than_its_rings_hold() -> None:
    """Two seconds, and not another one from there: the rings were written up to where it was first."""
    pcm = sound(5, 107)
    with small_engine(1, dataclasses.replace(PLAIN, rewind_seconds=2.0)) as engine, engine.open(settings(1)) as call:
        said = hear(call, pcm)
        assert len(call._seat.marks) <= engine.limits.spare_frames // 12 + 1
        went = call.rewind(2.0)
        with pytest.raises(UsageError, match="cannot go back"):
            call.rewind(0.9)
        assert same(hear(call, pcm[-went * FRAME_SAMPLES :]), said[-went:])
        assert call.rewind(2.0, seed=99) >= 25
        other = hear(call, pcm[-went * FRAME_SAMPLES :])
        assert not same(other, said[-went:])
        went = call.rewind(1.9)
        assert same(hear(call, pcm[-went * FRAME_SAMPLES :]), other[-went:])
        call.close()
        assert not call._seat.marks


# Snapshots of somebody else's making.


def changed(**values: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda notes: notes | values


def samples(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


BAD_NOTES: dict[str, Callable[[dict[str, Any]], object]] = {
    "missing": lambda notes: {name: value for name, value in notes.items() if name != "text"},
    "no object": lambda _: ["notes"],
    "seed": changed(seed=-1),
    "seed is true": changed(seed=True),
    "frames": changed(n_frames="x"),
    "fewer than none": changed(n_dropped=-3),
    "no hexadecimal": changed(text="zz"),
    "a long character": changed(text="00" * 99),
    "no turn": changed(agent=[1]),
    "quiet": changed(agent=[False, 0.5]),
    "voice": changed(voice=7),
    "prompt": changed(prompt=[1, "x"]),
    "sampling": changed(sampling={"text_top_k": "many"}),
    "unknown sampling": changed(sampling={"warmth": 3}),
    "no numbers": changed(unheard=samples(float("nan"))),
    "loud": changed(unheard=samples(1e30)),
    "no samples": changed(unheard="AAA"),
}


@pytest.fixture(scope="module")
def snapshot(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshot") / "call.safetensors"
    with engine.open(settings(1)) as call:
        hear(call, sound(1, 3))
        call.save(path)
    return path


def forged(path: Path, to: Path, notes: str | None = None, arrays: dict[str, mx.array] | None = None) -> Path:
    """The file with other notes or arrays and a checksum that is right."""
    file = TensorFile(path)
    values = {name: file.take(name) for name in list(file.entries)} | (arrays or {})
    mx.eval(list(values.values()))
    about = {name: file.metadata[name] for name in ("kind", "version", "model", "notes")}
    about["notes"] = about["notes"] if notes is None else notes
    mx.save_safetensors(str(to), values, metadata=about | {"checksum": states._checksum(values, about)})
    return to


@pytest.mark.parametrize("what", BAD_NOTES)
def test_forged_notes_are_refused_and_cost_no_slot(engine: Engine, snapshot: Path, tmp_path: Path, what: str) -> None:
    notes = BAD_NOTES[what](json.loads(TensorFile(snapshot).metadata["notes"]))
    with pytest.raises(CheckpointError, match="damaged"):
        engine.load(forged(snapshot, tmp_path / "forged.safetensors", json.dumps(notes)))
    assert engine.in_use == 0


@pytest.mark.parametrize("notes", ["{", "[" * 100_000])
def test_notes_that_are_not_json_are_refused(engine: Engine, snapshot: Path, tmp_path: Path, notes: str) -> None:
    with pytest.raises(CheckpointError, match="not JSON"):
        engine.load(forged(snapshot, tmp_path / "forged.safetensors", notes))


@pytest.mark.parametrize("position", [60, 2, -1, 2**31 - 1])
@pytest.mark.parametrize("part", ["0.1.1", "1.0.1", "2.1.1"])
def test_a_forged_position_would_see_what_others_left(
    engine: Engine, snapshot: Path, tmp_path: Path, part: str, position: int
) -> None:
    path = forged(snapshot, tmp_path / "forged.safetensors", arrays={part: mx.array([position], mx.int32)})
    with pytest.raises(CheckpointError, match="rings"):
        engine.load(path)


@pytest.mark.parametrize(("name", "value"), [("column", 1 << 30), ("column", -9), ("recent", 1 << 30), ("pinned", 41)])
def test_forged_tokens_are_not_looked_up(engine: Engine, snapshot: Path, tmp_path: Path, name: str, value: int) -> None:
    state, _ = engine._device.read(snapshot)
    place = f"1.{state.generator._fields.index(name)}"
    array = mx.full(getattr(state.generator, name).shape, value, mx.int32)
    with pytest.raises(CheckpointError, match="does not have"):
        engine.load(forged(snapshot, tmp_path / "forged.safetensors", arrays={place: array}))


def test_what_a_snapshot_says_was_unheard_is_bounded(engine: Engine, snapshot: Path, tmp_path: Path) -> None:
    notes = json.loads(TensorFile(snapshot).metadata["notes"]) | {"unheard": samples(*[0.1] * (30 * FRAME_SAMPLES))}
    with engine.load(forged(snapshot, tmp_path / "forged.safetensors", json.dumps(notes))) as call:
        call.finish()
        events = list(call.events())
    assert Ready(3, 1) == events[0] and Overrun(3, 18, 18) in events
    assert sum(isinstance(event, Audio) for event in events) == 12


def test_a_snapshot_that_cannot_be_placed_ends_only_itself(
    engine: Engine, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Device, "go_on")
    with pytest.raises(Exception, match="could not go on"):
        engine.load(snapshot).__enter__()
    monkeypatch.undo()
    assert engine.in_use == 0 and len(talk(engine, NOTHING, sound(1, 1))) == 1


def test_a_snapshots_name_has_its_suffix(engine: Engine, tmp_path: Path) -> None:
    with engine.open(settings(1)) as call:
        for name in ("call", "call.bin"):
            with pytest.raises(OutputError, match=r"\.safetensors"):
                call.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_kept_prompt_that_was_forged_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits, said = dataclasses.replace(PLAIN, prefix_folder=tmp_path), []
    for _ in range(2):
        with small_engine(1, limits) as engine:
            said.append(talk(engine, settings(1), sound(1, 4)))
        (path,) = tmp_path.iterdir()
        forged(path, path, "{")
    assert same(*said)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_prompt_is_kept_on_disk_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    with small_engine(1, dataclasses.replace(PLAIN, prefix_folder=tmp_path)) as engine:
        engine.open(settings(1)).__enter__()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_engine(1, dataclasses.replace(PLAIN, prefix_folder=tmp_path / ("x" * 300))) as engine:
        assert len(talk(engine, settings(1), sound(1, 1))) == 1
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


# Asking for more than is used.


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the prompts that were read, in turn."""
    read: list[int] = []
    reading = Generator.reading

    def count(self: Generator, prompt: Any, n_columns: int) -> Any:
        read.append(prompt.n_frames)
        return reading(self, prompt, n_columns)

    monkeypatch.setattr(Generator, "reading", count)
    return read


def test_what_nobody_waits_for_is_not_read(engine: Engine, n_read: list[int]) -> None:
    with held_back(engine):
        for i in range(50):
            engine.open(Settings(voice="", prompt=[50, i])).close()
        last = engine.open(Settings(voice="", prompt=[51, 51, 51]))
    with last:
        assert len(n_read) == 1


def test_of_many_changes_the_last_are_read(engine: Engine, n_read: list[int]) -> None:
    with engine.open(settings(1)) as call:
        n_read.clear()
        with held_back(engine):
            for i in range(50):
                call.update(prompt=[52, i])
        events = call.events()
        wait_for(lambda: not call._seat.is_reading)
        assert len(n_read) <= 2 and call._seat.settings.prompt == [52, 49]
        assert isinstance(events.get(5), Ready) and isinstance(events.get(5), Ready)


def test_a_change_that_cannot_be_used_spoils_no_other(engine: Engine) -> None:
    with engine.open(settings(1)) as call:
        with held_back(engine):
            call.update(voice="no such voice")
            call.update(prompt=[9, 9, 9])
        wait_for(lambda: not call._seat.is_reading)
        call.finish()
        assert [type(event) for event in call.events()] == [Ready, Error, Ready, Ended]
        assert call._seat.settings == dataclasses.replace(settings(1), prompt=[9, 9, 9])


def test_settings_change_when_the_change_takes_place(engine: Engine, tmp_path: Path) -> None:
    """The agent speaks, so it does not yet; a snapshot says what the slot holds."""
    with engine.open(settings(1)) as call:
        hear(call, sound(1, 3))
        assert call._seat.agent.speaking
        call.update(prompt=[60, 61])
        wait_for(lambda: call._seat.change is not None)
        call.save(tmp_path / "call.safetensors")
    with engine.load(tmp_path / "call.safetensors") as again:
        assert again._seat.settings.prompt == settings(1).prompt


def test_a_task_that_was_given_up_is_not_done(engine: Engine) -> None:
    with held_back(engine):
        given_up, other = engine.submit(lambda: 1), engine.submit(lambda: 2)
        assert given_up.cancel()
    assert other.result(30) == 2 and len(talk(engine, NOTHING, sound(1, 1))) == 1


def test_an_hour_at_once_is_cut_before_anybody_waits_for_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm, given = np.arange(400 * FRAME_SAMPLES + 700, dtype=np.float32) % 997 / 997, []
    with engine.open(NOTHING) as call:
        take_in = call._seat.take_in

        def watched(pcm: np.ndarray, *rest: int) -> None:
            given.append(len(pcm))
            take_in(pcm, *rest)

        monkeypatch.setattr(call._seat, "take_in", watched)
        with held_back(engine):
            call.send(pcm[:500])
            call.send(pcm[500:])
            unheard, dropped = call._seat.unheard, call.n_dropped
    assert given[1] < 15 * FRAME_SAMPLES and dropped == 388
    assert np.array_equal(unheard, pcm[388 * FRAME_SAMPLES :])


def test_what_is_shed_is_told_after_ready(engine: Engine) -> None:
    with held_back(engine):
        call = engine.open(settings(1))
        call.send(sound(1, 16))
        call.send(sound(1, 1))
    call.finish()
    assert list(call.events())[:2] == [Ready(0, 1), Overrun(0, 5, 5)]


def test_unread_seconds_are_seconds_of_sound() -> None:
    """Text and turns do not make them shorter."""
    with small_engine(1, dataclasses.replace(PLAIN, unread_seconds=4.0)) as engine, engine.open(settings(1)) as call:
        for i in range(50):
            call.feed(sound(i, 1))
            call._seat.mailbox.put(Overrun(0, 0, 0))
        wait_for(lambda: call.n_frames == 50)
        with pytest.raises(Closed):
            for _ in range(30):
                call.feed(sound(0, 1))
        wait_for(lambda: engine.in_use == 0)
        assert call.n_frames == 51


def test_feed_waits_no_longer_than_it_may_over_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = engine._device.step

    def slow(*given: Any) -> Any:
        time.sleep(0.1)
        return step(*given)

    monkeypatch.setattr(engine._device, "step", slow)
    with engine.open(NOTHING) as call:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            call.feed(sound(1, 40), timeout=0.5)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("bad", [{"warmth": 1}, {"text_temperature": "x"}, {"text_top_k": 2.5}, {"greedy": 1}])
def test_sampling_that_does_not_exist_is_refused(engine: Engine, bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        engine.open(Settings(voice="", prompt="", sampling=bad))
    assert engine.in_use == 0


# Threads and event loops.


def test_a_voice_may_come_from_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that was computed there and not evaluated; and a voice by name is loaded once."""
    with tiny_engine(1) as engine:
        name = engine.model.list_voices()[0]
        voice = engine.model.load_voice(name)
        assert voice.embeddings is not None
        blend = dataclasses.replace(voice, embeddings=voice.embeddings * 0.5 + voice.embeddings * 0.5)
        said = [talk(engine, Settings(choice, "", 1), sound(1, 2)) for choice in (name, voice, blend)]
        assert same(said[0], said[1]) and same(said[0], said[2])
        monkeypatch.delattr(PersonaPlex, "load_voice")
        monkeypatch.delattr(PersonaPlex, "list_voices")
        assert same(talk(engine, Settings(name, "", 1), sound(1, 2)), said[0])


def test_whoever_does_not_wait_for_loading_leaves_no_thread_behind() -> None:
    waiting = threading.main_thread().ident
    assert waiting is not None

    def load() -> PersonaPlex:
        signal.pthread_kill(waiting, signal.SIGINT)
        time.sleep(0.3)
        return small_model()

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        Engine(load)
    wait_for(lambda: set(threading.enumerate()) <= before)


def test_an_event_loop_that_stops_waiting_leaves_nothing_behind(engine: Engine) -> None:
    complaints: list[dict[str, Any]] = []

    async def give_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))

        async def one() -> None:
            async with engine.open(settings(1)):
                pass

        with held_back(engine):
            task = asyncio.create_task(one())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.05)
        gc.collect()
        async with engine.open(settings(1)) as call:
            events = call.events()
            assert isinstance(await events.__anext__(), Ready)
            for _ in range(5):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(events.__anext__(), 0.001)
            assert call._seat.mailbox._sleepers == []
            call.send(sound(1, 1))
            heard: list[Event] = [await events.__anext__()]
            assert heard

    asyncio.run(give_up())
    gc.collect()
    assert complaints == [] and engine.in_use == 0
