"""Listening for the user's turns in a thread of its own: what it costs is not on the device's clock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from personaplex.conversation import UserStarted, UserStopped
from personaplex.runtime.seat import Seat
from personaplex.turns import VoiceActivity

_log = logging.getLogger("personaplex")

MOST_WAITING = 256
"""Frames that may wait to be listened to; the device thread waits for the rest."""


class Ear:
    """Tells each seat when its user begins and stops speaking. `when_done(seat)` is called once all of it was heard."""

    def __init__(self, rule: VoiceActivity, when_done: Callable[[Seat], None]) -> None:
        # Imported here: it loads a model, and an engine may do without.
        from personaplex.vad import SpeechDetector

        self._rule = rule
        self._when_done = when_done
        self._new_detector = SpeechDetector
        self._queue: SimpleQueue[tuple[Seat, int, np.ndarray | None] | None] = SimpleQueue()
        self._room = threading.Semaphore(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="personaplex-ear", daemon=True)
        self._thread.start()

    def hear(self, seat: Seat, at: int, pcm: np.ndarray) -> None:
        """Listen to the user's frame `at`. Waits when far behind, so no lock may be held."""
        self._room.acquire()
        self._queue.put((seat, at, pcm))

    def finish(self, seat: Seat) -> None:
        """No more will come of this seat."""
        self._queue.put((seat, 0, None))

    def stop(self) -> None:
        """End the thread once it has heard what is waiting."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            seat, at, pcm = item
            if pcm is None:
                self._when_done(seat)
                continue
            try:
                self._listen(seat, at, pcm)
            except Exception:  # an engine that hears no turns any more still talks
                _log.exception("a frame could not be listened to")
            self._room.release()

    def _listen(self, seat: Seat, at: int, pcm: np.ndarray) -> None:
        seat.detector = seat.detector or self._new_detector()
        for probability in seat.detector.push(pcm):
            before, seat.user = seat.user, seat.user.after(probability, self._rule)
            if seat.user.speaking and not before.speaking:
                seat.user_began = at
                seat.mailbox.put(UserStarted(at))
            elif before.speaking and not seat.user.speaking:
                seat.mailbox.put(UserStopped(at))
