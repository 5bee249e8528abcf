"""The handle of a live conversation: what the user of an engine holds. Losing it frees the slot."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from personaplex.audio import as_chunk
from personaplex.conversation import Capabilities, EventStream, PromptChoice, VoiceChoice
from personaplex.runtime.seat import Seat

if TYPE_CHECKING:
    from personaplex.runtime.engine import Engine


class Call:
    """A conversation with an `Engine`; see `personaplex.conversation.Conversation` for what each method promises."""

    def __init__(self, engine: Engine, seat: Seat) -> None:
        self._engine = engine
        self._seat = seat
        weakref.finalize(self, engine.forget, seat.lease).atexit = False

    @property
    def capabilities(self) -> Capabilities:
        """What this conversation can do."""
        return self._engine.capabilities

    @property
    def seed(self) -> int:
        """The seed that repeats it."""
        return self._seat.seed

    @property
    def n_frames(self) -> int:
        """Frames lived so far."""
        return self._seat.n_frames

    @property
    def n_dropped(self) -> int:
        """Frames of input that were shed so far."""
        return self._seat.n_dropped

    def send(self, pcm: np.ndarray) -> None:
        """Give the user's sound as it is recorded; what is too much to be heard in time is shed, oldest first."""
        self._engine.send(self._seat, as_chunk(pcm))

    def feed(self, pcm: np.ndarray, timeout: float | None = None) -> None:
        """Give a recording, waiting until there is room for each frame of it."""
        self._engine.feed(self._seat, as_chunk(pcm), timeout)

    def send_text(self, text: str) -> None:
        """Have the agent say a text, in its own voice and beside what it hears. Experimental."""
        self._engine.say(self._seat, text)

    def cancel(self) -> None:
        """Cut the agent's turn short: it is made to be silent for as long as its turns need to be over."""
        self._engine.cancel(self._seat)

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None, keep_history: bool = False) -> None:
        """Change voice or prompt at the agent's next pause, and forget what was said; `Ready` is sent again.

        With `keep_history`, which is experimental, what is named here is read inside the running conversation.
        """
        self._engine.update(self._seat, voice, prompt, keep_history=keep_history)

    def events(self) -> EventStream:
        """The stream of this conversation's events."""
        return EventStream(self._seat.mailbox, self)

    def save(self, path: str | Path) -> None:
        """Write the conversation as it is now (.safetensors), what was sent but not heard included; it goes on.

        `Engine.load` continues it. Waits until it is ready, and for the step in progress. Raises OutputError when it
        cannot be written, and what made it impossible to be ready.
        """
        self._engine.save(self._seat, Path(path))

    def rewind(self, seconds: float, seed: int | None = None) -> int:
        """Forget the last `seconds` (up to one more: it is marked once a second); how many frames were forgotten.

        With the same sound again the agent says the same again; with another `seed` something else.
        Raises UsageError when the engine does not keep that much, or the conversation is not that old, or was set back
        already and what came before is not kept any more.
        """
        return self._engine.rewind(self._seat, seconds, seed)

    def finish(self) -> None:
        """No more input: hear what was given, then end."""
        self._engine.finish(self._seat)

    def close(self) -> None:
        """End now and free the slot."""
        self._engine.release(self._seat, "closed")

    def __enter__(self) -> Self:
        try:
            self._seat.ready.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            ready = asyncio.wrap_future(self._seat.ready)
            # Who stops waiting leaves the future behind; that nobody looks at its exception is no error then.
            ready.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(ready)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
