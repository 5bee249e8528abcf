"""Agents without a model, that do in a conversation what a test wants of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from personaplex.conversation import Audio, Ended, EndReason, Error, Event, Overrun, Settings
from personaplex.errors import BackendError, PersonaPlexError
from personaplex.units import FRAME_SAMPLES
from tests.contract.scripted import Scripted, ScriptedConversation


class Speaking(Scripted):
    """Says `sound(settings)` [S] from the first frame on, and remembers how it was opened and how many were at once."""

    def __init__(self, sound: Callable[[Settings], np.ndarray], slots: int = 4) -> None:
        super().__init__(slots)
        self._sound = sound
        self._lock = threading.Lock()
        self.opened: list[Settings] = []
        self.most_at_once = self.at_once = 0

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008 - frozen
        with self._lock:
            self.opened.append(settings)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        return _Speaking(self, settings, self._sound(settings))

    def left(self) -> None:
        with self._lock:
            self.at_once -= 1


class _Speaking(ScriptedConversation):
    def __init__(self, owner: Speaking, settings: Settings, sound: np.ndarray) -> None:
        super().__init__((), settings)
        self._owner = owner
        self._sound = sound

    def _hear(self, frame: np.ndarray) -> None:
        n, self._n_frames = self._n_frames, self._n_frames + 1
        said = self._sound[n * FRAME_SAMPLES :][:FRAME_SAMPLES]
        self._mailbox.put(Audio(n, np.pad(said, (0, FRAME_SAMPLES - len(said)))))

    def end(self, reason: EndReason) -> None:
        if not self.ended:
            self._owner.left()
        super().end(reason)


class Failing(Speaking):
    """Puts `event` into the first frame of every conversation, and then goes on."""

    def __init__(self, event: Event) -> None:
        super().__init__(lambda _: np.zeros(0, np.float32))
        self.event = event

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008 - frozen
        conversation = super().open(settings)
        conversation._mailbox.put(self.event)
        return conversation


def failures() -> list[tuple[Event, type[PersonaPlexError], str]]:
    """What may happen instead of an answer, and what is told of it."""
    from personaplex.errors import ConversationError

    return [
        (Error(0, BackendError("out of memory")), BackendError, "out of memory"),
        (Ended(0, "unread"), ConversationError, "ended before its recording did .unread."),
        (Overrun(0, 3, 3), ConversationError, "3 frames were not heard"),
    ]
