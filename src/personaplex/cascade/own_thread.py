"""One thread that everything of an owner's is computed in, for callers that wait: MLX has streams of each thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import Queue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """After the last item: what went wrong, if anything did."""

    error: Exception | None = None


class OwnThread(Generic[T]):
    """Calls and generators, one after the other, in a thread that starts with the first."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, f"personaplex-{name}")

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `call` returns, or raises."""
        return self._pool.submit(call, *arguments).result()

    def stream(self, begin: Callable[[], Iterator[T]], most: int = 0) -> Iterator[T]:
        """What a generator gives, as many as `most` items ahead of whoever asks (0: all of them).

        Closing this closes the generator once it has made what it is making.
        """
        items: Queue[T | _End] = Queue(most)
        left = threading.Event()

        def produce() -> None:
            error = None
            try:
                if not left.is_set():
                    with closing(cast(Any, begin())) as generator:
                        for item in generator:
                            items.put(item)
                            if left.is_set():
                                break
            except Exception as failed:  # whatever it is belongs to whoever asked
                error = failed
            items.put(_End(error))

        self._pool.submit(produce)
        end = None
        try:
            while not isinstance(item := items.get(), _End):
                yield item
            end = item
            if end.error is not None:
                raise end.error
        finally:
            left.set()
            while end is None:  # takes what was made meanwhile, so that the thread does not wait for room
                end = item if isinstance(item := items.get(), _End) else None

    def close(self) -> None:
        """Let the thread end once it has done what it was asked to. Does not wait."""
        self._pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
