"""Batches made ahead by other processes, in the order of their steps."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from personaplex.errors import TrainingError

T = TypeVar("T")

AHEAD = 4
"""Batches that each process keeps ready."""


@contextmanager
def feed(make: Callable[[], Callable[[int], T]], processes: int, first_step: int = 0) -> Iterator[Callable[[int], T]]:
    """Yield a function from step to batch; steps must be asked for in order, from `first_step`.

    `make` runs once in each process and returns the function that does the work there; it and the batches must be
    picklable. With 0 processes the work is done here. Process i makes steps i, i + n, ...: the order of the batches
    does not depend on who is faster. Raises TrainingError when a process has died.
    """
    if not processes:
        yield make()
        return
    context = multiprocessing.get_context("spawn")
    shelves: list[Any] = [context.Queue(AHEAD) for _ in range(processes)]
    workers = [
        context.Process(target=_work, args=(make, shelf, first_step + i, processes), daemon=True)
        for i, shelf in enumerate(shelves)
    ]
    for worker in workers:
        worker.start()

    ready: queue.Queue[tuple[int, T] | TrainingError] = queue.Queue(2)
    over = threading.Event()

    def fetch() -> None:
        """A batch is megabytes: who drives the device should find it in its own memory."""
        for step in itertools.count(first_step):
            number = (step - first_step) % processes
            found: tuple[int, T] | TrainingError | None = None
            while found is None and not over.is_set():
                try:
                    found = shelves[number].get(timeout=1)
                except queue.Empty:
                    if not workers[number].is_alive():
                        found = TrainingError(
                            "a process that makes batches has ended, see above; resume (with fewer, if memory ran out)"
                        )
            while found is not None and not over.is_set():
                try:
                    ready.put(found, timeout=1)
                    break
                except queue.Full:
                    continue
            if over.is_set() or isinstance(found, TrainingError):
                return

    def take(step: int) -> T:
        found = ready.get()
        if isinstance(found, TrainingError):
            raise found
        made, batch = found
        assert made == step, f"asked for step {step}, the next one is {made}"
        return batch

    fetcher = threading.Thread(target=fetch, daemon=True)
    fetcher.start()
    try:
        yield take
    finally:
        over.set()
        fetcher.join()
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(make: Callable[[], Callable[[int], Any]], shelf: Any, step: int, stride: int) -> None:
    os.nice(5)  # the process that drives the device must never wait for these
    batch = make()
    while True:
        shelf.put((step, batch(step)))
        step += stride
