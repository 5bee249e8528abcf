"""What the user says, in writing, beside any backend: a recogniser that listens in. Experimental, and off by default.

The backend tells when the user speaks (`UserStarted`, `UserStopped`); what was sent in that time is recognised in a
thread of the conversation's own, and told as `UserText`. The backend hears and does nothing else than without it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
import soxr

from personaplex.audio import as_chunk
from personaplex.cascade.engine import Listening, Recogniser, as_error
from personaplex.cascade.registry import default_recogniser, open_recogniser
from personaplex.conversation import (
    Audio,
    Backend,
    Capabilities,
    Conversation,
    Ended,
    Error,
    EventStream,
    Mailbox,
    Overrun,
    PromptChoice,
    Settings,
    UserStarted,
    UserStopped,
    UserText,
    VoiceChoice,
)
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

LEAD_SECONDS = 1.0
"""Sound before the user was noticed to speak that is recognised too."""

KEPT_SECONDS = 30.0
"""Of sound that waits so much is kept: a backend, or a recogniser, that is farther behind loses words."""

UNREAD_FRAMES = 9_000
"""Twelve minutes of sound (70 MB) that nobody reads end a conversation; the backend cannot see that they are unread."""

C = TypeVar("C", bound="TranscribedCall")

_Item: TypeAlias = "np.ndarray | int | UserStarted | UserStopped | Overrun | Future[None]"
"""Sound that was sent, a frame that was lived, an event, or somebody who waits until all before it was heard."""


class Transcribed:
    """A `backend` whose conversations tell `UserText`. It is closed with this, and so is the recogniser."""

    def __init__(self, backend: Backend, recogniser: str | None = None, language: str | None = None) -> None:
        self._backend = backend
        self._language = language
        self._recogniser = open_recogniser(recogniser or default_recogniser())
        self._recogniser.listen(language).close()  # what is wrong is known now, and what is slow is loaded
        self._heard: set[Future[None]] = set()

    @property
    def capabilities(self) -> Capabilities:
        """The backend's, and the user's text."""
        return dataclasses.replace(self._backend.capabilities, user_text=True)

    def open(self, settings: Settings = Settings()) -> TranscribedCall:  # noqa: B008 - frozen
        """Begin a conversation. Raises what the backend raises."""
        return self.listen_in(self._backend.open(settings))

    def listen_in(self, call: Conversation) -> TranscribedCall:
        """The same conversation, of which nobody has read events yet, with the user's text."""
        return self._kept(TranscribedCall(call, self._recogniser, self._language))

    def _kept(self, call: C) -> C:
        self._heard.add(call.heard)
        call.heard.add_done_callback(self._heard.discard)
        return call

    def close(self) -> None:
        """Close the backend, and the recogniser once nobody uses it any more."""
        self._backend.close()
        for heard in list(self._heard):
            heard.result()
        self._recogniser.close()


class TranscribedCall:
    """A conversation with the user's text; whatever else the backend's conversations can do, it can."""

    def __init__(self, call: Conversation, recogniser: Recogniser, language: str | None) -> None:
        self._call = call
        self._scribe = Scribe(call, recogniser, language)
        self.heard = self._scribe.over
        weakref.finalize(self, call.close).atexit = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    @property
    def capabilities(self) -> Capabilities:
        """The backend's, and the user's text."""
        return dataclasses.replace(self._call.capabilities, user_text=True)

    def send(self, pcm: np.ndarray) -> None:
        """Give the user's sound as it is recorded."""
        self._scribe.items.put(as_chunk(pcm))
        self._call.send(pcm)

    def feed(self, pcm: np.ndarray, timeout: float | None = None) -> None:
        """Give a recording, waiting until there is room."""
        pcm = as_chunk(pcm)
        until = None if timeout is None else time.monotonic() + timeout
        for start in range(0, len(pcm), SAMPLE_RATE):
            piece = pcm[start : start + SAMPLE_RATE]
            self._scribe.items.put(piece)
            self._call.feed(piece, None if until is None else max(0.0, until - time.monotonic()))

    def send_text(self, text: str) -> None:
        """Give a text that the user typed."""
        self._call.send_text(text)

    def cancel(self) -> None:
        """Make the agent stop."""
        self._call.cancel()

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None, keep_history: bool = False) -> None:
        """Change voice or prompt."""
        self._call.update(voice=voice, prompt=prompt, keep_history=keep_history)

    def events(self) -> EventStream:
        """The backend's events, with `UserText` among them."""
        return EventStream(self._scribe.mailbox, self)

    def finish(self) -> None:
        """No more input."""
        self._call.finish()

    def close(self) -> None:
        """End now."""
        self._call.close()

    def __enter__(self) -> Self:
        self._call.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.__exit__(kind, error, trace)

    async def __aenter__(self) -> Self:
        await self._call.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._call.__aexit__(kind, error, trace)


class Scribe:
    """Two threads of a conversation: one passes its events on, one recognises; both end with it, and it is `over`."""

    def __init__(self, call: Conversation, recogniser: Recogniser, language: str | None) -> None:
        self.mailbox = Mailbox()
        self.over: Future[None] = Future()
        self.items: SimpleQueue[_Item | None] = SimpleQueue()
        self._recogniser = recogniser
        self._language = language
        self._recent: deque[np.ndarray] = deque()
        self._n_recent = self._n_sent = self._n_lived = self._n_shed = self._frame = 0
        self._listening: Listening | None = None
        self._hearing = threading.Thread(target=self._hear, name="personaplex-scribe", daemon=True)
        self._hearing.start()
        threading.Thread(target=self._pass_on, args=(call,), name="personaplex-events", daemon=True).start()

    def _pass_on(self, call: Conversation) -> None:
        for event in call.events():
            self._frame = event.frame
            if isinstance(event, Ended):
                self.items.put(None)  # the last words come before the end
                self._hearing.join()
            n_unread = self.mailbox.put(event)
            if isinstance(event, UserStarted | UserStopped | Overrun):
                self.items.put(event)
            if isinstance(event, Audio):
                self.items.put(event.frame)
                if n_unread > UNREAD_FRAMES:
                    self.mailbox.put(Ended(event.frame, "unread"))
                    call.close()

    def _hear(self) -> None:
        try:
            while (item := self.items.get()) is not None:
                try:
                    self._take(item)
                except Exception as error:  # a recogniser is somebody else's program
                    self._close()
                    self.mailbox.put(Error(self._frame, as_error(error, "recogniser")))
            self._close()
        finally:
            self.over.set_result(None)

    def _take(self, item: _Item) -> None:
        match item:
            case UserStarted(frame):
                self._close()
                self._listening = self._recogniser.listen(self._language)
                self._resampler = soxr.ResampleStream(SAMPLE_RATE, self._recogniser.rate, 1, dtype="float32")
                onset = (frame + self._n_shed) * FRAME_SAMPLES - round(LEAD_SECONDS * SAMPLE_RATE)
                self._push(onset, self._n_lived)
            case UserStopped(frame) if self._listening is not None:
                heard = self._listening.finish()
                self._close()
                if heard.text.strip():
                    self.mailbox.put(UserText(frame, heard.text, True))
            case Overrun(dropped=dropped):
                self._n_shed += dropped
            case Future():
                item.set_result(None)
            case int(frame):
                before, self._n_lived = self._n_lived, (frame + 1 + self._n_shed) * FRAME_SAMPLES
                if self._listening is not None:
                    self._push(before, self._n_lived)
            case np.ndarray():
                self._keep(item)

    def _keep(self, pcm: np.ndarray) -> None:
        self._recent.append(pcm)
        self._n_sent += len(pcm)
        self._n_recent += len(pcm)
        while self._n_recent - len(self._recent[0]) > KEPT_SECONDS * SAMPLE_RATE:
            self._n_recent -= len(self._recent.popleft())

    def _push(self, start: int, end: int) -> None:
        """Have the sound between two samples recognised, as far as it is kept."""
        at, parts = self._n_sent - self._n_recent, [np.zeros(0, np.float32)]
        for piece in self._recent:
            parts.append(piece[max(0, start - at) : max(0, end - at)])
            at += len(piece)
        assert self._listening is not None
        so_far = self._listening.push(self._resampler.resample_chunk(np.concatenate(parts)))
        if so_far is not None and so_far.text:
            self.mailbox.put(UserText(self._frame, so_far.text, False))

    def _close(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
