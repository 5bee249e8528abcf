"""One thread for what blocks, awaited from an event loop; it ends with whoever owns it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Calls one after the other, in a thread that starts with the first.

    Whoever stops waiting for a call leaves it behind: its result is dropped, and the next call waits for its end,
    because native code cannot be stopped.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, f"personaplex-{name}")

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """What `call` returns, or raises."""
        return await asyncio.wrap_future(self._pool.submit(call, *arguments))

    def call(self, call: Callable[..., T], *arguments: Any) -> T:
        """What `call` returns, or raises; for another thread, which waits."""
        return self._pool.submit(call, *arguments).result()

    async def iterate(self, begin: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """What an iterator gives, one item ahead of nobody; closing this closes it, in its own thread."""
        begun: list[Iterator[T]] = []
        end = object()
        try:
            await self.run(lambda: begun.append(iter(begin())))
            (iterator,) = begun
            while (item := await self.run(next, iterator, end)) is not end:
                yield item
        finally:
            self.do(lambda: begun[0].close() if begun and hasattr(begun[0], "close") else None)

    def do(self, call: Callable[[], object]) -> None:
        """Have something done after what is under way; nobody waits for it. Dropped when closed."""
        with suppress(RuntimeError):
            self._pool.submit(call)

    def close(self) -> None:
        """Let the thread end once it has done what it was asked to. Does not wait."""
        self._pool.shutdown(wait=False)


class MLXWorker(Worker):
    """The thread of an engine that computes with MLX, whose streams belong to threads: load and use its model here."""

    def close(self) -> None:
        """As a `Worker`; a thread that left MLX's streams behind would abort the process when that ends."""
        import mlx.core as mx

        self.do(mx.clear_streams)
        super().close()
