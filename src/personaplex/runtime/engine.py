"""The live engine: one thread owns MLX and steps all conversations together, as their sound comes in.

The loop is `Engine._turn`: gather at most one frame per slot, step once, scatter the results. It runs when any slot has
a frame. A slot that has none does not move, so nobody waits for the slowest, and the clock of a conversation is its own
sound.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import mlx.core as mx
import numpy as np

from personaplex.conversation import Capabilities, EndReason, Settings
from personaplex.engine.duplex import Duplex, DuplexState, settle
from personaplex.engine.generator import Generator, Prefix
from personaplex.engine.prompt import Prompt
from personaplex.engine.sampling import Ceiling, check_seed
from personaplex.errors import BackendError, Closed, PersonaPlexError, UsageError
from personaplex.model import DEFAULT_PROMPT, PersonaPlex
from personaplex.nn.state import arrays, insert, stack, trim
from personaplex.runtime.call import Call
from personaplex.runtime.seat import Heard, Seat
from personaplex.runtime.slots import Lease, SlotTable
from personaplex.text import TextStream
from personaplex.units import FRAME_RATE, FRAME_SAMPLES

Result = TypeVar("Result")

READ_COLUMNS = 64
"""Columns of a new prompt per turn of the loop: others' frames go in between."""


@dataclass(frozen=True)
class Limits:
    """What an engine keeps for each slot.

    `pinned_frames`: voice and role of up to as many frames stay in view for ever; 0 is the reference's plain window.
    `backlog_seconds`: unheard input beyond it is shed, oldest first. `unread_seconds`: a conversation whose events
    nobody reads for as long is ended.
    """

    pinned_frames: int = 256
    backlog_seconds: float = 1.0
    unread_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.pinned_frames < 0:
            raise UsageError(f"pinned frames is {self.pinned_frames}; it must be 0 or more")
        for name in ("backlog_seconds", "unread_seconds"):
            if not 1 / FRAME_RATE <= getattr(self, name) < 1e6:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be one frame or more")


class Engine:
    """A model and `slots` conversations with it. Loads in its own thread; the constructor waits for that.

    `model` is what `PersonaPlex.from_pretrained` takes, or a function that makes one (it is called in that thread).
    Raises what loading raises.

    >>> with Engine("nano", slots=2) as engine, engine.open(Settings(voice="NATF2")) as call:
    ...     call.send(samples)
    ...     for event in call.events(): ...
    """

    capabilities = Capabilities(full_duplex=True)

    def __init__(
        self,
        model: str | Path | Callable[[], PersonaPlex],
        slots: int = 1,
        *,
        limits: Limits = Limits(),
    ) -> None:
        if slots < 1:
            raise UsageError(f"slots is {slots}; it must be 1 or more")
        self.limits = limits
        self._backlog = round(limits.backlog_seconds * FRAME_RATE)
        self._most_unread = round(limits.unread_seconds * FRAME_RATE)
        self._changed = threading.Condition()
        self._slots = SlotTable(slots)
        self._seats: dict[int, Seat] = {}
        self._vanished: deque[Lease] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._openings: deque[Iterator[None]] = deque()
        self._stopped: PersonaPlexError | None = None
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(model, loaded), name="personaplex-device", daemon=True)
        self._thread.start()
        loaded.result()

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

    def open(self, settings: Settings = Settings()) -> Call:  # noqa: B008 - frozen
        """Begin a conversation; returns at once, and `Ready` or `Ended` follows.

        Raises Busy when all slots are taken, Closed when the engine is, UsageError for a seed out of range.
        """
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        check_seed(seed)
        with self._changed:
            self._check_running()
            self._reap()
            lease = self._slots.lease()
            sampling = settings.sampling or self.model.sampling()
            seat = Seat(lease, settings, seed, sampling, TextStream(self.model.tokenizer))
            self._seats[lease.slot] = seat
            self._openings.append(self._opening(seat))
            self._changed.notify_all()
        return Call(self, seat)

    def close(self) -> None:
        """End every conversation and the thread. Harmless when that has happened."""
        self._stop(Closed("the engine was closed"), "shutdown")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What conversations ask for, in whatever thread they are held.

    def send(self, seat: Seat, pcm: np.ndarray) -> None:
        """Queue samples [S] of a seat."""
        with self._changed:
            self._check_open(seat)
            seat.take_in(pcm, self._backlog)
            self._changed.notify_all()

    def feed(self, seat: Seat, pcm: np.ndarray, timeout: float | None) -> None:
        """Queue samples [S] of a seat as room for them becomes free."""
        for start in range(0, len(pcm), FRAME_SAMPLES):
            with self._changed:
                self._check_open(seat)
                if not self._changed.wait_for(lambda: self._has_room(seat), timeout):
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
            raise self._stopped

    def check_open(self, seat: Seat) -> None:
        """Raise Closed unless the seat's conversation goes on."""
        with self._changed:
            self._check_open(seat)

    def _check_open(self, seat: Seat) -> None:
        if not self._slots.holds(seat.lease) or seat.finishing:
            raise Closed("this conversation has ended; open another")

    def _reap(self) -> None:
        while self._vanished:
            lease = self._vanished.popleft()
            if self._slots.holds(lease):
                self.release(self._seats[lease.slot], "vanished")

    def _end_if_done(self, seat: Seat) -> None:
        if seat.is_done:
            self.release(seat, "finished")

    def _stop(self, why: PersonaPlexError, reason: EndReason) -> None:
        with self._changed:
            self._stopped = self._stopped or why
            for seat in list(self._seats.values()):
                self.release(seat, reason, why if reason == "error" else None)
            self._changed.notify_all()

    # The device thread.

    def _run(self, model: str | Path | Callable[[], PersonaPlex], loaded: Future[None]) -> None:
        try:
            self._load(model)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while self._turn():
                pass
        except Exception as error:
            self._stop(BackendError(f"the engine stopped: {error}"), "error")
            raise
        finally:
            for task in self._tasks:
                with suppress(Exception):
                    task()

    def _load(self, model: str | Path | Callable[[], PersonaPlex]) -> None:
        self.model = model() if callable(model) else PersonaPlex.from_pretrained(model)
        self._generator = Generator(self.model.lm, self.model.config, pins=self.limits.pinned_frames)
        self._base = Ceiling.over(self.model.sampling())
        self._machines: dict[Ceiling, Duplex] = {}
        self._state = stack([self._machine().begin(None)] * self.slots)
        mx.eval(arrays(self._state))

    def _turn(self) -> bool:
        """Once round the loop: asked-for work, a piece of a new prompt, one step. False when the engine is closed."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            if self._stopped is not None:
                return False
            self._reap()
            tasks, self._tasks = self._tasks, deque()
            due = [(seat, frame) for seat in self._seats.values() if (frame := seat.next_frame()) is not None]
            self._changed.notify_all()
        for task in tasks:
            task()
        if self._openings and next(self._openings[0], "done") == "done":
            self._openings.popleft()
        if due:
            self._scatter(due, self._step(due))
        return True

    def _has_work(self) -> bool:
        waiting = any(seat.is_ready and seat.inbox for seat in self._seats.values())
        return bool(self._stopped or self._tasks or self._openings or self._vanished or waiting)

    def _step(self, due: list[tuple[Seat, np.ndarray]]) -> list[Heard]:
        """One step of the model with one frame for each seat that is due."""
        pcm, active = np.zeros((self.slots, FRAME_SAMPLES), np.float32), np.zeros(self.slots, bool)
        for seat, heard in due:
            pcm[seat.lease.slot], active[seat.lease.slot] = heard, True
        frame, self._state = self._machine().step(mx.array(pcm), self._state, mx.array(active))
        settle(frame, self._state)
        audio, tokens, valid = np.array(frame.pcm), np.array(frame.step.tokens), np.array(frame.step.valid)
        slots = [seat.lease.slot for seat, _ in due]
        return [Heard(audio[slot].copy(), tokens[slot], bool(valid[slot])) for slot in slots]

    def _scatter(self, due: list[tuple[Seat, np.ndarray]], results: list[Heard]) -> None:
        """Tell each seat what came of its frame; whoever has left meanwhile is told nothing."""
        with self._changed:
            for (seat, _), heard in zip(due, results, strict=True):
                if not self._slots.holds(seat.lease):
                    continue
                if seat.tell(heard) > self._most_unread:
                    seat.mailbox.clear()
                    self.release(seat, "unread")
                self._end_if_done(seat)

    def _machine(self) -> Duplex:
        """The step for the sampling of all that are open. It bounds work, not results: nobody hears it change."""
        ceiling = self._base.raised(*(seat.sampling for seat in list(self._seats.values())))
        if ceiling not in self._machines:
            self._machines[ceiling] = Duplex(self.model.mimi, self._generator, ceiling, compiled=self.model.compiled)
        return self._machines[ceiling]

    def _opening(self, seat: Seat) -> Iterator[None]:
        """Read a seat's prompt piece by piece and put the state into its slot."""
        try:
            read: Prefix | None = None
            for prefix in self._reading(self._compose(seat.settings)):
                read = prefix
                yield
                if not self._slots.holds(seat.lease):
                    return
            state = trim(self._machine().begin(read, seed=seat.seed, sampling=seat.sampling))
            self._place(seat, state)
        except PersonaPlexError as error:
            self.release(seat, "error", error)
        except Exception as error:
            self.release(seat, "error", BackendError(f"the conversation could not be opened: {error}"))

    def _reading(self, prompt: Prompt) -> Iterator[Prefix | None]:
        yield from self._generator.reading(prompt, READ_COLUMNS)

    def _place(self, seat: Seat, state: DuplexState) -> None:
        self._state = insert(self._state, seat.lease.slot, state)
        mx.eval(arrays(self._state))
        with self._changed:
            if self._slots.holds(seat.lease):
                seat.begin()
                self._end_if_done(seat)

    def _compose(self, settings: Settings) -> Prompt:
        """Voice and role as a prompt: None is the default, an empty one is none."""
        voice = self.model.default_voice if settings.voice is None else settings.voice or None
        prompt = DEFAULT_PROMPT if settings.prompt is None else settings.prompt
        return self.model.compose(voice, prompt if prompt or voice else None)
