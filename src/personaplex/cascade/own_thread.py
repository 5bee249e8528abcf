"""One thread that everything of an owner's is computed in, for callers that wait: MLX has streams of each thread."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from personaplex.errors import EngineError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _End:
    """After the last item: what went wrong, if anything did."""

    error: BaseException | None = None


class _Room:
    """For so many items that nobody has taken (0: for all), until nobody wants more."""

    def __init__(self, most: int) -> None:
        self._free = threading.Semaphore(most or 1 << 30)
        self._left = False

    def wait(self) -> bool:
        """Wait for room; whether another item is wanted."""
        self._free.acquire()
        return not self._left

    def taken(self) -> None:
        self._free.release()

    def leave(self) -> None:
        self._left = True
        self._free.release()


class OwnThread(Generic[T]):
    """Calls and generators, one after the other, in one thread; `last` is called in it when it ends.

    Not closed, it ends with the program, after the item that it is making then.
    """

    def __init__(self, name: str, last: Callable[[], object] = lambda: None) -> None:
        self._tasks: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._rooms: set[_Room] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(last,), name=f"personaplex-{name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self, last: Callable[[], object]) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # nothing of it is held until the next one comes
        last()

    def _do(self, task: Callable[[], object]) -> None:
        with self._lock:
            if self._closed:
                raise EngineError(f"the engine was closed ({self._thread.name})")
            self._tasks.put(task)

    def run(self, call: Callable[..., R], *arguments: Any) -> R:
        """What `call` returns, or raises. Raises EngineError after `close`."""
        done: Future[R] = Future()

        def task() -> None:
            try:
                done.set_result(call(*arguments))
            except BaseException as error:
                done.set_exception(error)

        self._do(task)
        return done.result()

    def stream(self, begin: Callable[[], Iterator[T]], most: int = 0) -> Iterator[T]:
        """What a generator gives, as many as `most` items ahead of whoever asks (0: all of them).

        Closing this closes the generator once it has made what it is making.
        """
        items: SimpleQueue[T | _End] = SimpleQueue()
        room = _Room(most)

        def produce() -> None:
            error: BaseException | None = EngineError(f"the engine was closed ({self._thread.name})")
            try:
                if room.wait():
                    with closing(cast(Any, begin())) as generator:
                        for item in generator:
                            items.put(item)
                            if not room.wait():
                                break
                        else:
                            error = None
            except BaseException as failed:  # whatever it is belongs to whoever asked, who waits
                error = failed
            items.put(_End(error))

        self._rooms.add(room)
        self._do(produce)
        end = None
        try:
            while not isinstance(item := items.get(), _End):
                room.taken()
                yield item
            end = item
            if end.error is not None:
                raise end.error
        finally:
            room.leave()
            while end is None:
                end = item if isinstance(item := items.get(), _End) else None
            self._rooms.discard(room)

    def close(self) -> None:
        """End the thread after the item that it is making, and wait for that. Harmless a second time."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._tasks.put(None)
                for room in list(self._rooms):
                    room.leave()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
