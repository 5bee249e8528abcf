"""The live engine: one thread owns MLX and steps all conversations together, as their sound comes in.

The loop is `Engine._turn`: do what was asked for, gather at most one frame per slot, step once, scatter the results. It
runs when any slot has a frame. A slot that has none does not move, so nobody waits for the slowest, and the clock of a
conversation is its own sound.
"""

from __future__ import annotations

import atexit
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import mlx.core as mx
import numpy as np

from personaplex.conversation import Capabilities, EndReason, Error, PromptChoice, Settings, VoiceChoice
from personaplex.engine.duplex import DuplexState
from personaplex.engine.generator import Prefix
from personaplex.engine.prompt import Prompt
from personaplex.engine.sampling import Sampling, check_seed
from personaplex.errors import BackendError, CheckpointError, Closed, PersonaPlexError, UsageError
from personaplex.model import PersonaPlex
from personaplex.models.streams import AGENT, DELAYS, N_STREAMS, TEXT, UNGENERATED
from personaplex.runtime.call import Call
from personaplex.runtime.device import Device, Source
from personaplex.runtime.disk import Disk
from personaplex.runtime.ear import Ear
from personaplex.runtime.limits import MARK_FRAMES, MOST_FORCED, RECOVER_SECONDS, Limits
from personaplex.runtime.reader import PromptReader
from personaplex.runtime.seat import Change, Forced, Heard, Seat
from personaplex.runtime.slots import Lease, SlotTable
from personaplex.runtime.snapshot import Notes
from personaplex.runtime.work import Pause, Tell, Work, WorkQueue, guarded
from personaplex.text import EPAD, TextStream
from personaplex.units import FRAME_RATE, FRAME_SAMPLES

Result = TypeVar("Result")
_log = logging.getLogger("personaplex")


class Engine:
    """A model and `slots` conversations with it. Loads in its own thread; the constructor waits for that.

    `model` is what `PersonaPlex.from_pretrained` takes, a model, which nobody else may use meanwhile, or a function
    that makes one (it is called in that thread). Raises what loading raises.

    >>> with Engine("nvidia/personaplex-7b-v1", slots=2) as engine, engine.open(Settings(voice="NATF2")) as call:
    ...     call.send(samples)
    ...     for event in call.events(): ...
    """

    capabilities = Capabilities(full_duplex=True, text_input=True, cancel=True, update=True, keep_history=True)

    def __init__(
        self,
        model: Source,
        slots: int = 1,
        *,
        limits: Limits | None = None,
    ) -> None:
        if slots < 1:
            raise UsageError(f"slots is {slots}; it must be 1 or more")
        self.limits = limits = limits or Limits()
        self._backlog = round(limits.backlog_seconds * FRAME_RATE)
        self._most_unread = round(limits.unread_seconds * FRAME_RATE)
        self._changed = threading.Condition()
        self._slots = SlotTable(slots)
        self._seats: dict[int, Seat] = {}
        self._vanished: deque[Lease] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._works = WorkQueue(self._changed)
        self._stopped: PersonaPlexError | None = None
        rule = limits.voice_activity
        self.disk = Disk()
        self._ear = Ear(rule, lambda seat: self.release(seat, "finished")) if rule is not None else None
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(model, loaded), name="personaplex-device", daemon=True)
        try:
            self._thread.start()
            # Should the process end while the thread is at work, it must be waited for: it has MLX's streams to clear.
            atexit.register(self.close)
            loaded.result()
        except BaseException:
            self._give_up_loading(loaded)
            raise
        config = self.model.config
        self._padding = (EPAD, config.lm.existing_text_padding_id)
        self._silence = np.array([config.lm.existing_text_padding_id, *config.silence_codes])

    def _give_up_loading(self, loaded: Future[None]) -> None:
        """Nobody will hold this engine. Loading cannot be interrupted, but what it loads need not live on."""
        if loaded.done():
            self.close()
        else:
            self._stop(Closed("the engine was not waited for"), "shutdown")
            self._rest()

    @property
    def model(self) -> PersonaPlex:
        """The model: its configuration, voices and prompts may be asked for, its networks belong to the engine."""
        return self._device.model

    @property
    def step_ms(self) -> list[float]:
        """Milliseconds of the last steps."""
        return list(self._device.step_ms)

    def watch(self, watcher: Callable[[float], None]) -> None:
        """Have `watcher` called with the seconds of every step, in the device thread, which it must not keep."""
        self._device.watch = watcher

    @property
    def unheard(self) -> list[int]:
        """Frames of input that wait to be heard, for each conversation."""
        with self._changed:
            return [len(seat.inbox) for seat in self._seats.values()]

    @property
    def slots(self) -> int:
        """How many conversations it can hold."""
        return self._slots.n_slots

    @property
    def in_use(self) -> int:
        """How many it holds now."""
        with self._changed:
            self._reap()
            return self._slots.in_use

    @property
    def prefix_bytes(self) -> int:
        """Memory of the prompts that are kept."""
        return self._device.prefixes.n_bytes

    def open(self, settings: Settings = Settings()) -> Call:  # noqa: B008 - frozen
        """Begin a conversation; returns at once, and `Ready` or `Ended` follows.

        Raises Busy when all slots are taken, Closed when the engine is, UsageError for a seed out of range.
        """
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        check_seed(seed)
        with self._changed:
            self._check_running()
            self._reap()
            seat = self._seated(settings, seed, self._sampling(settings))
            self._works.add(guarded(self._opening(seat), self._failing(seat), "could not be opened"))
        return Call(self, seat)

    def _seated(self, settings: Settings, seed: int, sampling: Sampling, text: bytes = b"") -> Seat:
        stream = TextStream(self.model.tokenizer, text)
        lease, spare = self._slots.lease(), self.limits.spare_frames
        seat = self._seats[lease.slot] = Seat(lease, settings, seed, sampling, stream, self._padding, spare)
        return seat

    def _sampling(self, settings: Settings) -> Sampling:
        if isinstance(settings.sampling, Sampling):
            return settings.sampling
        return self.model.sampling(**(settings.sampling or {}))

    def load(self, path: str | Path) -> Call:
        """Go on with a conversation that `Call.save` wrote, as if it had never stopped, unheard input included.

        Raises Busy and Closed as `open` does, and CheckpointError for a file that is damaged or made with another
        model, precision or window.
        """
        self._check_running()
        state, found = self.disk.do(lambda: self._device.read(Path(path))).result()
        notes = Notes.read(found, str(path))
        if any(frame.token >= self.model.config.lm.text_card for frame in notes.forced):
            raise CheckpointError(f"{path} is damaged: it holds tokens that this model does not have")
        with self._changed:
            self._check_running()
            self._reap()
            seat = self._seated(notes.settings, notes.seed, notes.sampling, notes.text)
            seat.agent, seat.n_frames, seat.n_dropped = notes.agent, notes.n_frames, notes.n_dropped
            seat.calm_at = notes.n_frames
            seat.forced, seat.script = (Forced(), notes.forced[0]), deque(notes.forced[1:])
            seat.take_in(notes.unheard, self._backlog)
            self._works.add(guarded(self._resuming(seat, state), self._failing(seat), "could not go on"))
        return Call(self, seat)

    def close(self) -> None:
        """End every conversation and the thread. Harmless when that has happened."""
        self._stop(Closed("the engine was closed"), "shutdown")
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._rest()
        atexit.unregister(self.close)

    def _rest(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.stop()
        self.disk.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What conversations ask for, in whatever thread they are held.

    def send(self, seat: Seat, pcm: np.ndarray) -> None:
        """Queue samples [S] of a seat."""
        # Of an hour at once only the end is kept: cut here, so that nobody waits for it to be copied. One frame more
        # than may wait stays, because the first is not whole without what came before.
        dropped = max(len(pcm) // FRAME_SAMPLES - self._backlog - 1, 0)
        with self._changed:
            self._check_open(seat)
            seat.take_in(pcm[dropped * FRAME_SAMPLES :], self._backlog, dropped)
            self._changed.notify_all()

    def feed(self, seat: Seat, pcm: np.ndarray, timeout: float | None) -> None:
        """Queue samples [S] of a seat as room for them becomes free."""
        until = None if timeout is None else time.monotonic() + timeout
        for start in range(0, len(pcm), FRAME_SAMPLES):
            with self._changed:
                self._check_open(seat)
                left = None if until is None else max(until - time.monotonic(), 0.0)
                if not self._changed.wait_for(lambda: self._has_room(seat), left):
                    raise TimeoutError(f"no room for more sound within {timeout} s")
                self._check_open(seat)
                seat.take_in(pcm[start : start + FRAME_SAMPLES], self._backlog)
                self._changed.notify_all()

    def _has_room(self, seat: Seat) -> bool:
        return len(seat.inbox) < self._backlog or not self._slots.holds(seat.lease)

    def finish(self, seat: Seat) -> None:
        """End a seat's conversation once its input is heard."""
        with self._changed:
            self._check_open(seat)
            seat.no_more_input()
            self._end_if_done(seat)
            self._changed.notify_all()

    def say(self, seat: Seat, text: str) -> None:
        """Have a seat's agent say `text`, after what else it was given to say."""
        tokens = self.model.tokenizer.spoken_tokens(text)
        with self._changed:
            self._check_open(seat)
            if len(seat.script) + len(tokens) > MOST_FORCED:
                raise UsageError(
                    f"the text takes {len(tokens) / FRAME_RATE:.0f} s to say; up to {MOST_FORCED / FRAME_RATE:.0f} s "
                    "may wait: give it in parts"
                )
            seat.script.extend(Forced(token) for token in tokens)

    def cancel(self, seat: Seat) -> None:
        """Cut short what a seat's agent is saying, and is to say."""
        with self._changed:
            self._check_open(seat)
            seat.cancel()

    def update(self, seat: Seat, voice: VoiceChoice, prompt: PromptChoice, *, keep_history: bool) -> None:
        """Give a seat's conversation another voice or prompt at the agent's next pause (None: as it is)."""
        with self._changed:
            self._check_open(seat)
            if keep_history and not voice and not prompt:
                raise UsageError("keep_history reads a voice or a prompt after what was said: name one")
            if seat.ask(voice, prompt, keep=keep_history):
                self._works.add(self._updating(seat))

    def save(self, seat: Seat, path: Path) -> None:
        """Write a seat's conversation as it is between two steps. Raises OutputError."""
        self.check_open(seat)
        seat.ready.result()
        state, notes = self.submit(lambda: self._capture(seat)).result()
        self.disk.do(lambda: self._device.write(path, state, notes.to_json())).result()

    def rewind(self, seat: Seat, seconds: float, seed: int | None) -> int:
        """Set a seat's conversation back; how many frames it went."""
        if not 0 < seconds <= self.limits.rewind_seconds:
            raise UsageError(f"rewind by {seconds} s: this engine goes back by up to {self.limits.rewind_seconds} s")
        if seed is not None:
            check_seed(seed)
        return self.submit(lambda: self._rewind(seat, seconds * FRAME_RATE, seed)).result()

    def release(self, seat: Seat, reason: EndReason, error: PersonaPlexError | None = None) -> None:
        """End a seat's conversation now and free its slot; harmless when it has ended."""
        with self._changed:
            if self._slots.release(seat.lease):
                del self._seats[seat.lease.slot]
                seat.end(reason, error)
            self._changed.notify_all()

    def forget(self, lease: Lease) -> None:
        """Nobody holds this lease's conversation any more. Called by the garbage collector, so at any moment."""
        self._vanished.append(lease)
        # It may hold any lock already, so it must not wait for ours: the slot is freed now, or when it is asked for.
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Do something in the device thread, between two steps."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            self._check_running()
            self._tasks.append(run)
            self._changed.notify_all()
        return future

    def _check_running(self) -> None:
        if self._stopped is not None:
            raise self._stopped.with_traceback(None)  # it is raised to many, and would grow with each

    def check_open(self, seat: Seat) -> None:
        """Raise Closed unless the seat's conversation goes on."""
        with self._changed:
            self._check_open(seat)

    def _check_held(self, seat: Seat) -> None:
        if not self._slots.holds(seat.lease):
            raise Closed("this conversation has ended; open another")

    def _check_open(self, seat: Seat) -> None:
        if not self._slots.holds(seat.lease) or seat.finishing:
            raise Closed("this conversation has ended; open another")

    def _reap(self) -> None:
        while self._vanished:
            lease = self._vanished.popleft()
            if self._slots.holds(lease):
                self.release(self._seats[lease.slot], "vanished")

    def _end_if_done(self, seat: Seat) -> None:
        if seat.is_done and self._ear is not None:
            self._ear.finish(seat)
        elif seat.is_done:
            self.release(seat, "finished")

    def _stop(self, why: PersonaPlexError, reason: EndReason) -> None:
        with self._changed:
            self._stopped = self._stopped or why
            for seat in list(self._seats.values()):
                self.release(seat, reason, why if reason == "error" else None)
            self._changed.notify_all()

    # The device thread.

    def _run(self, model: Source, loaded: Future[None]) -> None:
        try:
            self._live(model, loaded)
        finally:
            # A thread that leaves MLX's streams behind aborts the process when that ends.
            mx.clear_streams()

    def _live(self, model: Source, loaded: Future[None]) -> None:
        try:
            self._device = Device(model, self._slots.n_slots, self.limits)
            self._reader = PromptReader(self._device, self.disk)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while self._turn():
                pass
        except Exception as error:
            _log.exception("the engine stopped")
            self._stop(BackendError(f"the engine stopped: {error}"), "error")
        finally:
            for task in self._tasks:
                with suppress(Exception):
                    task()
            self._works.close()

    def _turn(self) -> bool:
        """Once round the loop: asked-for work, a piece of a new prompt, one step. False when the engine is closed.

        Frames are gathered last. What was asked for may change who sits where, and is done to the state without them.
        """
        with self._changed:
            self._changed.wait_for(self._has_work)
            if self._stopped is not None:
                return False
            self._reap()
            tasks, self._tasks = self._tasks, deque()
        for task in tasks:
            task()
        self._works.proceed()
        with self._changed:
            choices = [seat.sampling for seat in self._seats.values()]
            due = [(seat, frame) for seat in self._seats.values() if (frame := seat.next_frame()) is not None]
            forced = {seat.lease.slot: self._column(*seat.forced) for seat, _ in due}
            self._changed.notify_all()
        if due:
            self._scatter(due, self._device.step({seat.lease.slot: pcm for seat, pcm in due}, forced, choices))
        return True

    def _column(self, now: Forced, then: Forced) -> np.ndarray:
        """What is decided of the column [17] that ends one frame and begins the next."""
        column = np.full(N_STREAMS, UNGENERATED)
        spoken = slice(TEXT, AGENT.stop)
        for frame, delay in ((now, 1), (then, 0)):
            if frame.silent:
                column[spoken] = np.where(np.array(DELAYS[spoken]) == delay, self._silence, column[spoken])
        if not then.silent:
            column[TEXT] = then.token
        return column

    def _has_work(self) -> bool:
        waiting = any(seat.is_waiting for seat in self._seats.values())
        return bool(self._stopped or self._tasks or self._works or self._vanished or waiting)

    def _scatter(self, due: list[tuple[Seat, np.ndarray]], results: dict[int, Heard]) -> None:
        """Tell each seat what came of its frame; whoever has left meanwhile is told nothing."""
        with self._changed:
            told = [(seat, seat.n_frames, pcm) for seat, pcm in due if self._slots.holds(seat.lease)]
            for seat, _, _ in told:
                self._tell(seat, results[seat.lease.slot])
        for seat, _, _ in told:
            self._change_in_a_pause(seat)
            self._mark(seat)
        self._listen(told)

    def _tell(self, seat: Seat, heard: Heard) -> None:
        if not heard.is_finite:
            seat.break_off()
            self.release(seat, "error", BackendError("the model's output is not finite; the conversation cannot go on"))
        elif seat.tell(heard) > self._most_unread:
            seat.mailbox.clear()
            self.release(seat, "unread")
        elif seat.judge(heard) is not None and self.limits.recover and seat.may_recover():
            seed = (seat.seed + seat.n_frames) % (1 << 63)
            self._set_back(seat, seat.go_back(RECOVER_SECONDS * FRAME_RATE, or_less=True), seed)

    def _listen(self, heard: list[tuple[Seat, int, np.ndarray]]) -> None:
        """Hand the users' frames on, and end whoever has nothing more to say: last, so that nothing follows the end."""
        if self._ear is not None:
            for seat, at, pcm in heard:
                self._ear.hear(seat, at, pcm)
        with self._changed:
            for seat, _, _ in heard:
                seat.in_step = False
                if self._slots.holds(seat.lease):
                    self._end_if_done(seat)

    def _failing(self, seat: Seat) -> Tell:
        return lambda error: self.release(seat, "error", error)

    def _opening(self, seat: Seat) -> Iterator[Pause]:
        """Read a seat's prompt piece by piece and put the state into its slot."""
        read = yield from self._reader.read(seat.settings, partial(self._check_held, seat))
        self._device.begin(seat.lease.slot, read, seat.seed, seat.sampling)
        self._welcome(seat)
        yield None

    def _resuming(self, seat: Seat, state: DuplexState) -> Iterator[Pause]:
        self._check_held(seat)
        self._device.go_on(seat.lease.slot, state, seat.sampling)
        self._welcome(seat)
        yield None

    def _updating(self, seat: Seat) -> Work:
        """Read the first change that a seat was asked for; a bad one changes nothing. What follows queues up again."""
        with self._changed:
            change, keep = seat.asked.pop(0)
        yield from guarded(self._changing(seat, change, keep=keep), self._telling(seat), "could not be changed")
        with self._changed:
            seat.is_reading = bool(seat.asked)
            if seat.asked:
                self._works.add(self._updating(seat))

    def _telling(self, seat: Seat) -> Tell:
        def tell(error: PersonaPlexError) -> None:
            seat.mailbox.put(Error(seat.n_frames, error))

        return tell

    def _changing(self, seat: Seat, change: Change, *, keep: bool) -> Iterator[Pause]:
        settings, keep = seat.with_change(change), keep and not seat.forgets
        inside: Change = seat.inside | change if keep else {}
        if keep:
            named = Settings(voice=inside.get("voice") or "", prompt=inside.get("prompt") or "")  # type: ignore[arg-type]
            prompt = yield from self._reader.compose(named, partial(self._check_held, seat))
            act = partial(self._read_inside, seat, settings, prompt)
        else:
            read = yield from self._reader.read(settings, partial(self._check_held, seat))
            act = partial(self._exchange, seat, settings, read)
        with self._changed:
            seat.coming, seat.change, seat.forgets, seat.inside = settings, act, not keep, inside
        self._change_in_a_pause(seat)
        yield None

    def _change_in_a_pause(self, seat: Seat) -> None:
        pauses = seat.is_ready and not seat.agent.speaking and not seat.is_held and not seat.script
        if seat.change is not None and pauses and self._slots.holds(seat.lease):
            change, seat.change, seat.forgets, seat.inside = seat.change, None, False, {}
            change()

    def _read_inside(self, seat: Seat, settings: Settings, prompt: Prompt) -> None:
        """Begin to read a prompt inside a seat's conversation, which stands still until it is read."""
        seat.is_held = True
        work = guarded(self._reading_inside(seat, settings, prompt), self._telling(seat), "could not be changed")
        self._works.add(work)

    def _reading_inside(self, seat: Seat, settings: Settings, prompt: Prompt) -> Iterator[Pause]:
        try:
            for _ in self._device.reading_inside(seat.lease.slot, prompt, seat.sampling):
                yield None
                self._check_held(seat)
            with self._changed:
                seat.begin_again(settings, kept=True)
            self._mark(seat)
        finally:
            with self._changed:
                seat.is_held = False
                if seat.change is None:  # what could not be read does not come
                    seat.coming = seat.settings
            self._change_in_a_pause(seat)

    def _exchange(self, seat: Seat, settings: Settings, prefix: Prefix | None) -> None:
        """Put what was read into a seat's slot. Nobody waits for the lock meanwhile: the slot is this thread's."""
        self._device.begin(seat.lease.slot, prefix, seat.seed, seat.sampling)
        with self._changed:
            if self._slots.holds(seat.lease):
                seat.begin_again(settings)
                self._mark(seat)

    def _welcome(self, seat: Seat) -> None:
        """The slot holds the seat's conversation now."""
        with self._changed:
            if self._slots.holds(seat.lease):
                self._mark(seat)
                seat.begin()
                self._end_if_done(seat)
        self._change_in_a_pause(seat)

    def _mark(self, seat: Seat) -> None:
        """Remember now and then where the seat is, for as long as the rings do."""
        with self._changed:
            if self.limits.rewind_seconds and seat.age % MARK_FRAMES == 0 and self._slots.holds(seat.lease):
                seat.mark(self._device.mark())

    def _rewind(self, seat: Seat, n_frames: float, seed: int | None) -> int:
        with self._changed:
            self._check_open(seat)
            if seat.is_held:
                raise UsageError(
                    "the conversation cannot go back while a role is read inside it; Ready tells when it was"
                )
            return self._set_back(seat, seat.go_back(n_frames), seed)

    def _set_back(self, seat: Seat, to: tuple[int, list[mx.array]], seed: int | None) -> int:
        age, mark = to
        self._device.set_back(seat.lease.slot, mark, seed)
        went, seat.age = seat.age - age, age
        self._mark(seat)  # with the new seed, whoever goes back there again
        return went

    def _capture(self, seat: Seat) -> tuple[DuplexState, Notes]:
        with self._changed:
            self._check_open(seat)
            if not seat.is_ready:
                raise UsageError("the conversation is not ready: its slot holds nothing of it yet")
            notes = Notes.of(seat)
        return self._device.capture(seat.lease.slot), notes
