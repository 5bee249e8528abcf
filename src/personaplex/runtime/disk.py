"""Files are read and written in a thread of their own: no step waits for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import mlx.core as mx

from personaplex.errors import Closed

Result = TypeVar("Result")

MOST_OFFERED = 4
"""Tasks that may wait and need not be done: each keeps its memory."""


class Disk:
    """One thread; what it is given is done in turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="personaplex-disk", daemon=True)
        self._thread.start()

    def do(self, task: Callable[[], Result]) -> Future[Result]:
        """Do `task`. Raises Closed when the thread is to end."""
        future: Future[Result] = Future()
        with self._lock:
            if self._stopped:
                raise Closed("the engine was closed")
            self._tasks.put((future, task))
        return future

    def offer(self, task: Callable[[], None]) -> None:
        """Do `task`, unless too much waits already: it is work that only saves work."""
        if self._tasks.qsize() < MOST_OFFERED:
            self.do(task)

    def stop(self) -> None:
        """End the thread once it has done what it was given."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._do_next():
            pass
        # A thread that leaves MLX's streams behind aborts the process when that ends.
        mx.clear_streams()

    def _do_next(self) -> bool:
        """One task, in a frame of its own: nothing of it (a whole slot, it may be) is held until the next one comes."""
        item = self._tasks.get()
        if item is None:
            return False
        future, task = item
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)
        return True
