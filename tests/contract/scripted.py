"""A backend without a model, for tests of everything above the seam: the agent says what a script says."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from personaplex.audio import Framer, as_chunk
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Capabilities,
    Ended,
    EndReason,
    EventStream,
    Mailbox,
    PromptChoice,
    Ready,
    Settings,
    VoiceChoice,
)
from personaplex.errors import Busy, Closed, Unsupported
from personaplex.units import FRAME_SAMPLES


class Scripted:
    """One word every five frames, the user's own sound back; as many conversations as `slots`."""

    capabilities = Capabilities(full_duplex=True)

    def __init__(self, slots: int, words: Sequence[str] = ("hello", "there")) -> None:
        self.slots = slots
        self.words = words
        self._open: weakref.WeakSet[ScriptedConversation] = weakref.WeakSet()
        self._closed = False

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008 - frozen
        if self._closed:
            raise Closed("this backend was closed")
        in_use = sum(not conversation.ended for conversation in self._open)
        if in_use == self.slots:
            raise Busy(in_use, self.slots)
        conversation = ScriptedConversation(self.words, settings)
        self._open.add(conversation)
        return conversation

    def close(self) -> None:
        self._closed = True
        for conversation in list(self._open):
            conversation.end("shutdown")


class ScriptedConversation:
    capabilities = Scripted.capabilities

    def __init__(self, words: Sequence[str], settings: Settings) -> None:
        self._words = words
        self._framer = Framer()
        self._mailbox = Mailbox()
        self._lock = threading.Lock()
        self._n_frames = 0
        self.ended = False
        self._mailbox.put(Ready(0, settings.seed or 0))

    def send(self, pcm: np.ndarray) -> None:
        self._check()
        for frame in self._framer.push(as_chunk(pcm)):
            self._hear(frame)

    def feed(self, pcm: np.ndarray, timeout: float | None = None) -> None:
        self.send(pcm)

    def _hear(self, frame: np.ndarray) -> None:
        with self._lock:
            n, self._n_frames = self._n_frames, self._n_frames + 1
            if n == 0:
                self._mailbox.put(AgentStarted(n))
            self._mailbox.put(Audio(n, frame))
            word, rest = divmod(n, 5)
            if rest == 0 and word < len(self._words):
                self._mailbox.put(AgentText(n, self._words[word] + " "))
            if n == 5 * len(self._words):
                self._mailbox.put(AgentEnded(n))

    def send_text(self, text: str) -> None:
        self._check()
        raise Unsupported("the script takes no text")

    def cancel(self) -> None:
        self._check()
        raise Unsupported("the script is never cancelled")

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None) -> None:
        self._check()
        raise Unsupported("the script is never changed")

    def events(self) -> EventStream:
        return EventStream(self._mailbox, self)

    def finish(self) -> None:
        self._check()
        for frame in self._framer.flush():
            self._hear(frame)
        self.end("finished")

    def close(self) -> None:
        self.end("closed")

    def end(self, reason: EndReason) -> None:
        with self._lock:
            if not self.ended:
                self.ended = True
                self._mailbox.put(Ended(self._n_frames, reason))

    def _check(self) -> None:
        if self.ended:
            raise Closed("this conversation has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


FRAME = np.full(FRAME_SAMPLES, 0.1, np.float32)
