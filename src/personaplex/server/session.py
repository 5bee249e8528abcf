"""A conversation that a server opened for somebody: the backend's, with its numbers taken as they pass."""

from __future__ import annotations

import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, cast

import numpy as np

from personaplex.by_turns import TurnBased
from personaplex.conversation import (
    Audio,
    Capabilities,
    Conversation,
    Ended,
    Event,
    EventStream,
    Overrun,
    PromptChoice,
    VoiceChoice,
)
from personaplex.errors import Unsupported
from personaplex.server.metrics import Metrics
from personaplex.server.scribe import Scribe

_numbers = itertools.count(1)


class Session:
    """See `personaplex.conversation.Conversation` for what each method promises. Losing it frees the slot.

    `ended` is called with its number and the reason when somebody notices its end, which may be more than once.
    `scribe` writes it down.
    """

    def __init__(
        self,
        conversation: Conversation,
        mode: str,
        metrics: Metrics,
        client: str,
        ended: Callable[[int, str], None],
        vanished: deque[int],
        scribe: Scribe | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.mode = mode
        self.client = client
        self.scribe = scribe
        self.n_waiting = 0
        """Frames of input that its route holds back until the conversation can hear them."""
        self._conversation = conversation
        self._metrics = metrics
        self._began: float | None = time.monotonic()
        self._ended = ended
        # The garbage collector may hold any lock already, so it only leaves a note.
        weakref.finalize(self, vanished.append, self.number).atexit = False

    @property
    def capabilities(self) -> Capabilities:
        """What this conversation can do."""
        return self._conversation.capabilities

    def send(self, pcm: np.ndarray) -> None:
        """Give the user's sound as it is recorded."""
        if self.scribe is not None:  # before the agent's frame of the same time may come
            self.scribe.heard(pcm)
        self._conversation.send(pcm)

    def feed(self, pcm: np.ndarray, timeout: float | None = None) -> None:
        """Give a recording, waiting until there is room."""
        if self.scribe is not None:
            self.scribe.heard(pcm)
        self._conversation.feed(pcm, timeout)

    def send_text(self, text: str) -> None:
        """Give the agent a typed text."""
        self._conversation.send_text(text)
        if self.scribe is not None:
            self.scribe.typed(text)

    def cancel(self) -> None:
        """Make the agent stop what it is saying."""
        self._conversation.cancel()

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None, keep_history: bool = False) -> None:
        """Change voice or prompt at the agent's next pause."""
        self._conversation.update(voice=voice, prompt=prompt, keep_history=keep_history)

    @property
    def by_turns(self) -> TurnBased:
        """The same conversation's history, tools and turns. Raises Unsupported where it has none."""
        if not hasattr(self._conversation, "take_turns"):
            raise Unsupported("this server's cascade holds no conversations by turns")
        return cast(TurnBased, self._conversation)

    def events(self) -> EventStream:
        """The stream of this conversation's events."""
        return _Watched(self._conversation.events(), self)

    def finish(self) -> None:
        """No more input: hear what was given, then end."""
        self._conversation.finish()

    def close(self) -> None:
        """End now and free the slot."""
        self._conversation.close()
        if self.scribe is not None:
            self.scribe.close()
        self._ended(self.number, "closed")

    def overran(self, dropped: int) -> None:
        """Count that so many frames of input were shed on the way to the conversation."""
        self._metrics.overruns.inc()
        self._metrics.shed.inc(dropped)

    def saw(self, event: Event | None) -> Event | None:
        """Take the numbers of an event that the reader is about to get, and have it written down."""
        if self.scribe is not None:
            self.scribe.saw(event)
        if isinstance(event, Audio) and self._began is not None:
            began, self._began = self._began, None
            self._metrics.first_audio.labels(self.client).observe(time.monotonic() - began)
        elif isinstance(event, Overrun):
            self.overran(event.dropped)
        elif isinstance(event, Ended):
            self._ended(self.number, event.reason)
        return event

    def __enter__(self) -> Self:
        self._conversation.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            await self._conversation.__aenter__()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Watched(EventStream):
    """The stream of a conversation, as its session sees it pass."""

    def __init__(self, events: EventStream, session: Session) -> None:
        self._events = events
        self._session = session

    def get(self, timeout: float | None = None) -> Event | None:
        return self._session.saw(self._events.get(timeout))

    def __next__(self) -> Event:
        event = next(self._events)
        self._session.saw(event)
        return event

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        self._session.saw(event)
        return event
