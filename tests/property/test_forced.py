"""What is decided of a running conversation's frames: typed text, silence, and a role read inside it."""

from __future__ import annotations

import dataclasses
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from personaplex import PersonaPlex
from personaplex.audio import write_audio
from personaplex.checkpoint import states
from personaplex.checkpoint.tensors import TensorFile
from personaplex.conversation import Ended, Error, Ready, Settings
from personaplex.engine.prompt import Prompt, compose
from personaplex.engine.sampling import Ceiling
from personaplex.errors import CheckpointError, Closed, PersonaError, PersonaPlexError, UsageError
from personaplex.models.streams import AGENT, DELAYS, TEXT, USER
from personaplex.nn.sinks import STRIDE
from personaplex.nn.state import arrays
from personaplex.runtime.call import Call
from personaplex.runtime.device import READ_COLUMNS
from personaplex.runtime.disk import Disk
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import MOST_FORCED, Limits
from personaplex.runtime.seat import Heard
from personaplex.text import PAD
from personaplex.turns import QUIET_FRAMES, Turn
from personaplex.units import FRAME_SAMPLES
from personaplex.voice import Voice
from tests.conftest import PARITY
from tests.property.test_engine import QUESTION
from tests.property.test_engine_hostile import forged, wait_for
from tests.property.test_kept import hear, held_back, same, settings, sound
from tests.property.test_slots import FOLDER, SAMPLING, machine
from tests.small import small_engine, tiny_engine

PLAIN = Limits(pinned_frames=40, voice_activity=None)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tiny_engine(2) as engine:
        yield engine


@pytest.fixture
def told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The tokens [17] of the frames of slot 0."""
    tokens: list[np.ndarray] = []
    step = engine._device.step

    def watch(*given: Any) -> dict[int, Heard]:
        results = step(*given)
        tokens.extend(heard.tokens for slot, heard in results.items() if slot == 0)
        return results

    monkeypatch.setattr(engine._device, "step", watch)
    return tokens


def test_typed_text_is_the_text_of_the_frames_that_follow_and_the_rest_is_drawn(
    engine: Engine, told: list[np.ndarray]
) -> None:
    said = []
    for text in ("", "one two"):
        told.clear()
        with engine.open(Settings(seed=4)) as call, engine.open(Settings(seed=5)) as neighbour:
            hear(call, sound(1, 3))
            call.send_text(text)
            hear(call, sound(2, 20))
            said.append((np.stack(told), hear(neighbour, sound(3, 4))))
    (free, beside), (forced, too) = said
    tokens = engine.model.tokenizer.spoken_tokens("one two")
    assert forced[4 : 4 + len(tokens), TEXT].tolist() == tokens != free[4 : 4 + len(tokens), TEXT].tolist()
    # The word of a frame already counts for the acoustic codes of the frame before.
    assert np.array_equal(forced[:3], free[:3]) and not np.array_equal(forced[4:, AGENT], free[4:, AGENT])
    assert same(beside, too)


def test_a_cancelled_agent_says_silence_from_the_next_frame_but_one(engine: Engine, told: list[np.ndarray]) -> None:
    """The frame that is half drawn is finished; then as many of silence as make its turn over, and not one more."""
    with engine.open(Settings(seed=4)) as call:
        hear(call, sound(1, 3))
        assert call._seat.agent.speaking
        before = len(told)
        call.cancel()
        hear(call, sound(2, QUIET_FRAMES + 4))
    silence = [PAD, *engine.model.config.silence_codes]
    silent = [frame[: AGENT.stop].tolist() == silence for frame in told[before:]]
    assert silent == [False] + [True] * QUIET_FRAMES + [False] * 3


def test_what_is_not_speaking_is_not_silenced(engine: Engine) -> None:
    with engine.open(Settings(seed=4)) as call:
        call.send_text("never said")
        call.cancel()
        assert not call._seat.script


def test_more_text_than_can_wait_is_refused(engine: Engine) -> None:
    with engine.open(Settings(seed=4)) as call:
        with pytest.raises(UsageError, match=r"up to 60 s may wait"):
            call.send_text("word " * MOST_FORCED)
        call.send_text("a few words")
        n = len(call._seat.script)
        with pytest.raises(UsageError):
            for _ in range(MOST_FORCED // n + 1):
                call.send_text("a few words")
        assert len(call._seat.script) <= MOST_FORCED


@pytest.mark.parametrize("n_frames", [0, 4, QUIET_FRAMES])
@pytest.mark.parametrize("act", [Call.cancel, lambda call: call.send_text("one two")], ids=["silence", "text"])
def test_a_snapshot_holds_what_is_still_to_be_said(
    engine: Engine, tmp_path: Path, act: Callable[[Call], None], n_frames: int
) -> None:
    path = tmp_path / "call.safetensors"
    with engine.open(Settings(seed=4)) as call:
        hear(call, sound(1, 3))
        act(call)
        hear(call, sound(2, n_frames))
        call.save(path)
        expected = hear(call, sound(3, 20))
    with engine.load(path) as again:
        assert same(hear(again, sound(3, 20)), expected)


def test_rewinding_drops_what_was_to_be_said() -> None:
    with small_engine(1, dataclasses.replace(PLAIN, rewind_seconds=2.0)) as engine, engine.open(settings(1)) as call:
        said = hear(call, sound(1, 20))
        call.cancel()
        went = call.rewind(0.5)
        assert not call._seat.script
        assert same(hear(call, sound(1, 20)[-went * FRAME_SAMPLES :]), said[-went:])


# A role inside a conversation.


@given(seed=st.integers(0, 99), heard=st.integers(0, 30), n_text=st.integers(1, 8), size=st.integers(1, 12))
@examples(max_examples=8)
def test_a_role_read_inside_is_the_same_as_stepped_through(seed: int, heard: int, n_text: int, size: int) -> None:
    """In pieces of any size, at any age: against single steps whose tokens are all given."""
    generator, rng = machine(pins=30).generator, np.random.default_rng(seed)
    state = generator.open(compose(FOLDER.config, None, [5, 6, 7]), seed=seed, sampling=SAMPLING)
    ceiling = Ceiling.over(SAMPLING)
    for _ in range(heard):
        _, state = generator.step(mx.array(rng.integers(0, 90, (1, 8))), state, ceiling)
        mx.eval(state)
    prompt = compose(FOLDER.config, None, [int(t) for t in rng.integers(4, 90, n_text)])
    prefix = [*generator.reading(prompt, size, state)][-1]
    assert prefix is not None
    found = generator.go_on(prefix, state, SAMPLING)

    columns = np.concatenate([prompt.columns[1:], prompt.pending[None]])
    delayed = np.array(DELAYS) == 1
    stepped = state._replace(column=mx.where(mx.array(delayed), state.column, mx.array(columns[:1])))
    for now, then in pairwise(columns):
        user = np.where(delayed[USER], then[USER], now[USER])
        _, stepped = generator.step(mx.array(user[None]), stepped, ceiling, mx.array(then[None]))
    assert found.temporal.position.item() == stepped.temporal.position.item() == 15 + heard + len(columns) - 1
    assert found.column.tolist() == stepped.column.tolist()
    for a, b in zip(arrays(found.temporal), arrays(stepped.temporal), strict=True):
        assert float(mx.abs(a - b).max()) < 1e-4


def answer(engine: Engine, before: np.ndarray, *, keep: bool) -> list[np.ndarray]:
    with engine.open(settings(1)) as call:
        hear(call, before)
        engine.submit(lambda: setattr(call._seat, "agent", Turn())).result()  # the smallest model never pauses
        call.update(prompt=[60, 61], keep_history=keep)
        events = call.events()
        while (event := events.get(30)) != Ready(len(before) // FRAME_SAMPLES, 1, keep):
            assert event is not None
        return hear(call, sound(7, 4))


def test_what_was_said_is_remembered_only_if_it_is_kept() -> None:
    with small_engine(2, PLAIN) as engine:
        for keep in (True, False):
            one, same_again, other = (answer(engine, sound(seed, 5), keep=keep) for seed in (1, 1, 2))
            assert same(one, same_again) and same(one, other) != keep


def test_a_role_is_read_with_the_pinned_one_where_it_belongs() -> None:
    """At a frame where that is due to follow the window: whether a neighbour was stepped meanwhile is not heard."""
    assert same(after_a_stride(neighbour=False), after_a_stride(neighbour=True))


def after_a_stride(*, neighbour: bool) -> list[np.ndarray]:
    with small_engine(2, PLAIN) as engine, engine.open(settings(1)) as call, engine.open(settings(2)) as other:
        n_frames = engine.model.lm.config.context + STRIDE - 2  # the prompt has a column more than are pinned
        hear(call, sound(1, n_frames))
        if neighbour:
            hear(other, sound(2, 1))
        engine._seats[0].agent = Turn()
        call.update(prompt=[60, 61], keep_history=True)
        wait_for(lambda: call._seat.settings.prompt == [60, 61])
        assert engine.submit(lambda: engine._device.capture(0)).result().generator.sinks.shift.item() == STRIDE
        return hear(call, sound(7, 2))


def test_neighbours_are_stepped_between_the_pieces_of_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a new conversation's role, and of one that is read inside another, which stands still meanwhile."""
    for device in READ_COLUMNS:
        monkeypatch.setitem(READ_COLUMNS, device, 4)
    order: list[str] = []
    with small_engine(3, PLAIN) as engine, engine.open(settings(1)) as neighbour, engine.open(settings(2)) as call:
        expected = hear(neighbour, sound(1, 4))
        step, advance = engine._device.step, engine._device._generator._advance

        def stepping(frames: dict[int, np.ndarray], *more: Any) -> Any:
            order.append("".join(str(slot) for slot in frames))
            return step(frames, *more)

        def reading(embedded: mx.array, *more: Any) -> Any:
            order.extend(["read"] * (embedded.shape[1] > 1))
            return advance(embedded, *more)

        monkeypatch.setattr(engine._device, "step", stepping)
        monkeypatch.setattr(engine._device._generator, "_advance", reading)
        with held_back(engine):
            new = engine.open(settings(3))
            neighbour.send(sound(2, 8))
        with new:
            pass
        assert order[:6] == ["read", "0"] * 3
        order.clear()
        hear(call, sound(3, 1))
        order.clear()
        with held_back(engine):
            call.send_text("")
            engine._seats[1].agent = Turn()
            call.update(prompt=[9] * 9, keep_history=True)
            call.send(sound(4, 2))
            neighbour.send(sound(2, 8))
        events = call.events()
        while (event := events.get(30)) != Ready(1, 2, kept=True):
            assert event is not None
    assert expected and order.count("read") == 5
    while "read" in order:
        at = order.index("read")
        assert order[at + 1] == "0", "the neighbour is stepped, and nobody else"
        del order[: at + 1]


def test_neighbours_are_stepped_between_the_pieces_of_a_recorded_voice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is then the voice that is made of it all at once."""
    clip, order = tmp_path / "clip.wav", list[object]()
    write_audio(clip, sound(1, 20))
    with small_engine(3, PLAIN) as engine, engine.open(settings(1)) as neighbour:
        whole = engine.submit(lambda: engine.model.load_voice(clip)).result()
        step, encoding = engine._device.step, engine.model.mimi.encoding

        def stepping(frames: dict[int, np.ndarray], *more: Any) -> Any:
            order.extend(frames)
            return step(frames, *more)

        def reading(*given: Any) -> Iterator[mx.array]:
            neighbour.send(sound(2, 8))
            for codes in encoding(*given):
                order.append("read")
                yield codes

        monkeypatch.setattr(engine._device, "step", stepping)
        monkeypatch.setattr(engine.model.mimi, "encoding", reading)
        with engine.open(Settings(clip, [5], seed=2)) as call:
            said = hear(call, sound(3, 4))
        with engine.open(Settings(whole, [5], seed=2)) as again:
            assert same(hear(again, sound(3, 4)), said)
    assert order[:6] == ["read", 0] * 3
    with small_engine(1, PLAIN) as engine:
        for bad in (tmp_path / "none.wav", QUESTION.parent):
            with pytest.raises(PersonaPlexError), engine.open(Settings(bad, [5])):
                pass


@pytest.mark.parametrize("keep", [False, True])
def test_a_change_waits_for_the_conversation_to_begin(keep: bool, tmp_path: Path) -> None:
    """Even when the new role is known already, and the first one is still looked for on the disk."""
    with small_engine(1, dataclasses.replace(PLAIN, prefix_folder=tmp_path)) as engine:
        with engine.open(Settings("", [60, 61], seed=1)) as call:
            expected = hear(call, sound(1, 4))
        go_on = threading.Event()
        engine.disk.do(lambda: go_on.wait(10))
        with held_back(engine):
            call = engine.open(Settings("", [5, 6], seed=1))
            call.update(prompt=[60, 61], keep_history=keep)
        wait_for(lambda: not call._seat.is_reading)
        assert not call._seat.is_ready
        go_on.set()
        events = call.events()
        assert [events.get(30), events.get(30)] == [Ready(0, 1), Ready(0, 1, keep)]
        assert same(hear(call, sound(1, 4)), expected) != keep
        call.close()


def test_a_role_that_cannot_be_read_inside_changes_nothing() -> None:
    with small_engine(1, PLAIN) as engine, engine.open(settings(1)) as call:
        call.update(prompt=[5] * 60, keep_history=True)
        call.update(voice="no such voice", keep_history=True)
        call.feed(sound(1, 2))
        wait_for(lambda: not call._seat.is_reading and not call._seat.is_held)
        call.finish()
        events = list(call.events())
        assert [type(event.error) for event in events if isinstance(event, Error)] == [PersonaError] * 2
        assert events[-1] == Ended(2, "finished") and call._seat.settings == settings(1) == call._seat.coming


def test_a_role_that_cannot_be_read_inside_spoils_no_later_change() -> None:
    """It is told at once, in the middle of the agent's turn too, and what is asked for next is not built on it."""
    with small_engine(1, PLAIN) as engine, engine.open(settings(1)) as call:
        engine.submit(lambda: setattr(call._seat, "agent", Turn(speaking=True))).result()
        call.update(prompt=[5] * 60, keep_history=True)
        wait_for(lambda: not call._seat.is_reading)
        call.update(voice="")
        wait_for(lambda: not call._seat.is_reading)
        assert call._seat.change is not None and call._seat.coming == settings(1)
        call.close()
        events = list(call.events())
    assert [type(event.error) for event in events if isinstance(event, Error)] == [PersonaError]


def test_a_conversation_that_reads_a_role_is_left_alone() -> None:
    """No going back into what is being read; whoever leaves meanwhile leaves the slot to the next."""
    with small_engine(1, dataclasses.replace(PLAIN, rewind_seconds=2.0)) as engine:
        expected = talk(engine)
        with engine.open(settings(1)) as call:
            hear(call, sound(1, 20))
            engine.submit(lambda: held(engine, call)).result()
            call.close()
            with pytest.raises(Closed):
                call.update(prompt=[1], keep_history=True)
        assert talk(engine) == expected


def held(engine: Engine, call: Call) -> None:
    call._seat.agent = Turn()
    engine._read_inside(call._seat, call._seat.settings, Prompt(None, np.ones((30, 17), np.int32), np.ones(17)))
    with pytest.raises(UsageError, match="while a role is read"):
        engine._rewind(call._seat, 1.0, None)


def talk(engine: Engine) -> list[bytes]:
    with engine.open(settings(5)) as call:
        return [pcm.tobytes() for pcm in hear(call, sound(5, 4))]


# Whatever the slot held.


@pytest.mark.parametrize("stepped", [False, True])
def test_what_is_no_number_in_a_slot_is_not_the_next_ones(stepped: bool) -> None:
    """Whether it came in with a voice that nobody heard, or while somebody talked."""
    with small_engine(1, PLAIN) as engine:
        expected = talk(engine)
        dim = engine.model.config.lm.dim
        nothing = Voice("nothing", embeddings=mx.full((20, dim), mx.nan), ring=np.zeros((17, 4), np.int32))
        with engine.open(settings(1) if stepped else Settings(voice=nothing, prompt=[5], seed=1)) as call:
            if stepped:
                engine.submit(lambda: poison(engine)).result()
                call.send(sound(1, 1))
                assert Ended(0, "error") in call.events()
        ring = engine._device._state.generator.temporal.rings[0]
        assert not mx.isfinite(ring.k).all(), "there is nothing to be protected from"
        assert talk(engine) == expected


def poison(engine: Engine) -> None:
    state = engine._device._state
    for transformer in (state.generator.temporal, state.encoder.transformer, state.decoder.transformer):
        for ring in transformer.rings:
            # With memory of their own, as what kernels write to must have: a number alone would be repeated by strides.
            ring.k[:], ring.v[:] = (mx.full(rows.shape, mx.nan) for rows in ring)


# Threads.


@pytest.mark.parametrize("as_function", [False, True])
def test_a_model_that_another_thread_loaded_can_be_used(model: PersonaPlex, as_function: bool) -> None:
    """Before it was ever used there, or after; and there again."""
    made: list[PersonaPlex] = []
    loading = threading.Thread(target=lambda: made.append(fresh()))
    loading.start()
    loading.join()
    said = []
    for one in (made[0], model):
        with (
            Engine(partial(lambda it: it, one) if as_function else one) as engine,
            engine.open(Settings(seed=3)) as call,
        ):
            said.append(hear(call, sound(1, 4)))
    assert same(*said)
    again = [frame.audio for frame in made[0].respond_realtime([sound(1, 4)], seed=3)]
    assert all(np.abs(a - b).max() < 1e-4 for a, b in zip(again, said[0], strict=True))


def fresh() -> PersonaPlex:
    try:
        return PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False)
    finally:
        mx.clear_streams()


@pytest.mark.parametrize(
    "what", ["a prompt is looked for", "a prompt is written", "a call is saved", "a call is loaded"]
)
def test_no_step_waits_for_a_disk(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, a neighbour is heard; afterwards everything was done."""
    hangs, go_on = threading.Event(), threading.Event()
    path = tmp_path / "call.safetensors"
    limits = dataclasses.replace(PLAIN, prefix_folder=tmp_path / "prompts")
    with small_engine(1, limits) as engine, engine.open(settings(2)) as call:
        call.save(path)

    def hang(module: str, name: str) -> None:
        work = getattr(states, name)

        def slow(*given: Any) -> Any:
            hangs.set()
            assert go_on.wait(30)
            return work(*given)

        monkeypatch.setattr(f"personaplex.runtime.{module}.{name}", slow)

    with small_engine(3, limits) as engine, engine.open(settings(1)) as neighbour:
        engine.disk.do(lambda: None).result()
        acts: dict[str, tuple[str, str, Any]] = {
            "a prompt is looked for": ("prefix", "read_state", lambda: engine.open(settings(2)).__enter__()),
            "a prompt is written": ("prefix", "write_state", lambda: engine.open(settings(3)).__enter__()),
            "a call is saved": ("device", "write_state", lambda: neighbour.save(tmp_path / "b.safetensors")),
            "a call is loaded": ("device", "read_state", lambda: engine.load(path).__enter__()),
        }
        module, name, act = acts[what]
        hang(module, name)
        thread = threading.Thread(target=act)
        thread.start()
        assert hangs.wait(30)
        try:
            assert len(hear(neighbour, sound(1, 2))) == 2
        finally:
            go_on.set()
        thread.join(30)
    assert (tmp_path / "b.safetensors").exists() == (what == "a call is saved")
    assert len(list((tmp_path / "prompts").iterdir())) == 2 + (what == "a prompt is written")


def test_what_was_done_on_disk_is_not_held() -> None:
    """A snapshot is as large as a slot."""
    disk = Disk()
    state = np.zeros(1000)
    gone = weakref.ref(state)
    disk.do(partial(np.sum, state)).result()
    del state
    wait_for(lambda: gone() is None)
    disk.stop()


def test_the_folder_of_prompts_is_bounded_and_the_oldest_leave(tmp_path: Path) -> None:
    with small_engine(1, dataclasses.replace(PLAIN, prefix_folder=tmp_path)) as engine:
        engine.open(settings(0)).__enter__()
    one = next(tmp_path.iterdir()).stat().st_size
    limits = dataclasses.replace(PLAIN, prefix_folder=tmp_path, prefix_folder_bytes=round(2.5 * one))
    first = {path.name for path in tmp_path.iterdir()}
    for seeds in ([1], [0, 2], [3]):
        for seed in seeds:
            with small_engine(1, limits) as engine:
                engine.open(settings(seed)).__enter__()
        names = {path.name for path in tmp_path.iterdir()}
        assert len(names) == 2
        assert (first <= names) == (seeds != [3])


def test_forged_words_are_not_said(engine: Engine, tmp_path: Path) -> None:
    with engine.open(Settings(seed=4)) as call:
        hear(call, sound(1, 2))
        call.save(tmp_path / "a.safetensors")
    notes = json.loads(TensorFile(tmp_path / "a.safetensors").metadata["notes"])
    for bad in ([[1 << 20, False]], [[-3, False]], [["x", False]], [[5]], 7, []):
        text = json.dumps(notes | {"forced": bad})
        with pytest.raises(CheckpointError, match="damaged"):
            engine.load(forged(tmp_path / "a.safetensors", tmp_path / "b.safetensors", text))
    assert engine.in_use == 0
