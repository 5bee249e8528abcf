"""What is done for one conversation piece by piece, between the steps of all the others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from personaplex.errors import BackendError, PersonaPlexError

Pause: TypeAlias = "Future[Any] | None"
Work: TypeAlias = Generator[Pause, None, None]
"""Done piece by piece: after each, it pauses for a step of the others, or for as long as the disk takes."""

Tell: TypeAlias = Callable[[PersonaPlexError], None]

_DONE = object()


class WorkQueue:
    """Works in the order in which they came; `changed` is the lock of whoever adds them, and is notified."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._works: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self._works)

    def add(self, work: Work) -> None:
        """Have `work` done after what waits already."""
        with self._changed:
            self._works.append(work)
            self._changed.notify_all()

    def proceed(self) -> None:
        """Do pieces until one pauses for a step; what waits for a disk queues up again when that is done."""
        while self._works and (pause := next(self._works[0], _DONE)) is not None:
            work = self._works.popleft()
            if isinstance(pause, Future):
                pause.add_done_callback(partial(self._go_on, work))

    def _go_on(self, work: Work, _: Future[Any]) -> None:
        self.add(work)

    def close(self) -> None:
        """Leave undone what is not done."""
        for work in tuple(self._works):  # the disk's thread may still add to them
            with suppress(Exception):
                work.close()


def guarded(work: Iterator[Pause], tell: Tell, what: str) -> Work:
    """Work for one conversation, whose failure is that conversation's alone: `tell` is told of it."""
    try:
        yield from work
    except PersonaPlexError as error:
        tell(error)
    except Exception as error:
        tell(BackendError(f"the conversation {what}: {error}"))
