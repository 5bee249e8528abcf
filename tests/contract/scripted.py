"""A backend without a model, for tests of everything above the seam: the agent says what a script says."""

from __future__ import annotations

import threading
import weakref
from collections import deque
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
    Interrupted,
    Mailbox,
    PromptChoice,
    Ready,
    Settings,
    VoiceChoice,
)
from personaplex.errors import Busy, Closed, Unsupported, UsageError
from personaplex.steps import StepMeasure
from personaplex.units import FRAME_SAMPLES


class Scripted:
    """One word every five frames, the user's own sound back; as many conversations as `slots`."""

    def __init__(
        self,
        slots: int,
        words: Sequence[str] = ("hello", "there"),
        capabilities: Capabilities = Capabilities(full_duplex=True),  # noqa: B008 - frozen
    ) -> None:
        self.slots = slots
        self.words = words
        self.capabilities = capabilities
        self._open: weakref.WeakSet[ScriptedConversation] = weakref.WeakSet()
        self._closed = False

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008 - frozen
        if self._closed:
            raise Closed("this backend was closed")
        in_use = sum(not conversation.ended for conversation in self._open)
        if in_use == self.slots:
            raise Busy(in_use, self.slots)
        conversation = ScriptedConversation(self.words, settings, self.capabilities)
        self._open.add(conversation)
        return conversation

    def close(self) -> None:
        self._closed = True
        for conversation in list(self._open):
            conversation.end("shutdown")


class ScriptedConversation:
    def __init__(
        self,
        words: Sequence[str],
        settings: Settings,
        capabilities: Capabilities = Capabilities(full_duplex=True),  # noqa: B008
    ) -> None:
        self.capabilities = capabilities
        self._seed = settings.seed or 0
        self._words = deque(enumerate(words))
        self._speaks = False
        self._framer = Framer()
        self._mailbox = Mailbox()
        self._lock = threading.Lock()
        self._n_frames = 0
        self.ended = False
        self._mailbox.put(Ready(0, self._seed))

    def send(self, pcm: np.ndarray) -> None:
        self._check()
        for frame in self._framer.push(as_chunk(pcm)):
            self._hear(frame)

    def feed(self, pcm: np.ndarray, timeout: float | None = None) -> None:
        self.send(pcm)

    def _hear(self, frame: np.ndarray) -> None:
        with self._lock:
            n, self._n_frames = self._n_frames, self._n_frames + 1
            says = n % 5 == 0 and bool(self._words) and self._words[0][0] <= n // 5
            if says and not self._speaks:
                self._mailbox.put(AgentStarted(n))
            self._mailbox.put(Audio(n, frame, StepMeasure(1.0 + n, 0.1, 0.2, 0.3)))
            if says:
                self._mailbox.put(AgentText(n, self._words.popleft()[1] + " "))
            elif n % 5 == 0 and self._speaks:
                self._mailbox.put(AgentEnded(n))
            self._speaks = says or (self._speaks and n % 5 != 0)

    def send_text(self, text: str) -> None:
        self._check(able=self.capabilities.text_input)
        self._words.extend((0, word) for word in text.split())

    def cancel(self) -> None:
        self._check(able=self.capabilities.cancel)
        with self._lock:
            self._words.clear()
            if self._speaks:
                self._mailbox.put(Interrupted(self._n_frames))
                self._mailbox.put(AgentEnded(self._n_frames))
            self._speaks = False

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None, keep_history: bool = False) -> None:
        self._check(able=self.capabilities.keep_history if keep_history else self.capabilities.update)
        if keep_history and not voice and not prompt:
            raise UsageError("nothing to read")
        self._mailbox.put(Ready(self._n_frames, self._seed, keep_history))

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

    def _check(self, *, able: bool = True) -> None:
        if self.ended:
            raise Closed("this conversation has ended")
        if not able:
            raise Unsupported("this script cannot do that")

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
