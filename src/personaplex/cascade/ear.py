"""Hearing the user: when they speak, and what they say, as it is said."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import soxr

from personaplex.cascade.engine import EndOfTurn, Listening, Recogniser, as_error
from personaplex.cascade.turns import Final, Partial, TurnEvent, UserBegan, UserEnded
from personaplex.cascade.worker import Worker
from personaplex.errors import PersonaPlexError
from personaplex.turns import UserTurn, VoiceActivity
from personaplex.units import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from personaplex.vad import Detector

LEAD_SECONDS = 0.5
"""Sound before the onset that belongs to the utterance, beside what it takes to notice it."""

MOST_FRAMES = round(90 * FRAME_RATE)
"""Frames that may wait for a recogniser that is slower than speech; the rest of the utterance is not heard."""

FRAMES_AT_ONCE = 5
"""A recogniser is not given more in one call: what is native cannot be stopped before its end."""

JUDGED_FRAMES = round(8 * FRAME_RATE)
"""What is heard of a turn by whoever tells its end from a pause."""


@dataclass(frozen=True)
class Pauses:
    """`judge` tells whether a silence ends the user's turn, from probability `enough` on; what lasts `longest` does."""

    judge: EndOfTurn
    enough: float = 0.5
    longest_seconds: float = 3.0


@dataclass(eq=False)
class _Utterance:
    """Frames that wait to be recognised, None after the last; `n_due` of them, or being recognised."""

    frames: asyncio.Queue[np.ndarray | None] = field(default_factory=asyncio.Queue)
    n_due: int = 0

    def push(self, frame: np.ndarray) -> None:
        if self.n_due < MOST_FRAMES:
            self.n_due += 1
            self.frames.put_nowait(frame)


class Ear:
    """The user of one conversation. `tell` is called in the event loop; `fail` with what a recogniser raises.

    `settled` is called whenever something that waited was recognised. `is_voiced`: somebody spoke in the last frame.
    Without `pauses` every silence that `rule` knows ends a turn.
    """

    def __init__(
        self,
        detector: Detector,
        rule: VoiceActivity,
        tell: Callable[[TurnEvent], None],
        fail: Callable[[PersonaPlexError], None],
        settled: Callable[[], None],
        pauses: Pauses | None = None,
    ) -> None:
        self._detector = detector
        self._rule = rule
        self._tell, self._fail, self._settled = tell, fail, settled
        self._pauses = pauses
        self._turn = UserTurn()
        self._n_paused: int | None = None  # frames of a silence within a turn that is not over
        self._judging: asyncio.Task[None] | None = None
        self._judged: deque[np.ndarray] = deque(maxlen=JUDGED_FRAMES)
        self._judge_worker = Worker("end-of-turn")
        self.is_voiced = False
        self.by_hand = False
        """Somebody else tells when the user speaks; see `forget` for changing it."""
        self._recent: deque[np.ndarray] = deque(maxlen=round((LEAD_SECONDS + rule.speech_seconds) * FRAME_RATE) + 1)
        self._worker = Worker("ear")
        self._open: _Utterance | None = None
        self._tasks: dict[asyncio.Task[None], _Utterance] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether sound waits to be recognised, or a silence to be judged."""
        return self._judging is not None or any(utterance.n_due for utterance in self._tasks.values())

    def hear(self, frame: np.ndarray, *, may_pause: bool = True) -> None:
        """Take the user's next frame [1920]: whether they speak, and what. Not `may_pause`, any silence ends a turn."""
        self._recent.append(frame)
        self._judged.append(frame)
        if self._open is not None:
            self._open.push(frame)
        self.is_voiced = False
        if self.by_hand:
            return
        for probability in self._detector.push(frame):
            self.is_voiced |= probability >= self._rule.onset
            before, self._turn = self._turn, self._turn.after(probability, self._rule)
            if self._turn.speaking and not before.speaking:
                self._begin_turn()
            elif before.speaking and not self._turn.speaking:
                self._pause(may_pause)
        if self._n_paused is not None and self._pauses is not None:
            self._n_paused += 1
            if self._n_paused >= self._pauses.longest_seconds * FRAME_RATE:
                self._end_turn()

    def forget(self, rule: VoiceActivity | None = None) -> None:
        """Nobody is speaking, and what was heard so far belongs to no turn; `rule` is for what comes."""
        self._rule = rule or self._rule
        self._turn = UserTurn()
        self._recent.clear()
        self._stop_judging()

    def _begin_turn(self) -> None:
        if self._n_paused is None or self._open is None:  # it goes on, unless it was ended for its length
            self._judged = deque(self._recent, maxlen=JUDGED_FRAMES)
            self._tell(UserBegan())
        self._stop_judging()

    def _pause(self, may_pause: bool) -> None:
        if self._pauses is None or not may_pause:
            self._end_turn()
        else:
            self._n_paused = round(self._rule.silence_seconds * FRAME_RATE)
            heard = np.concatenate(self._judged)
            self._judging = asyncio.create_task(self._judge(self._pauses, heard), name="personaplex-end-of-turn")

    def _end_turn(self) -> None:
        self._stop_judging()
        self._tell(UserEnded())

    def _stop_judging(self) -> None:
        self._n_paused = None
        if self._judging is not None:
            self._judging.cancel()
            self._judging = None

    async def _judge(self, pauses: Pauses, heard: np.ndarray) -> None:
        """Whether the silence at the end of `heard` [S] ends the turn; one that cannot be judged does."""
        try:
            probability = await self._judge_worker.run(pauses.judge.probability, heard)
        except Exception as error:  # whoever judges is somebody else's program
            self._fail(as_error(error, "end of turn"))
            probability = 1.0
        self._judging = None
        if probability >= pauses.enough:
            self._end_turn()
        self._settled()

    def listen(self, recogniser: Recogniser, language: str | None) -> None:
        """Begin an utterance, with the sound just before."""
        utterance = self._open = _Utterance()
        for frame in self._recent:
            utterance.push(frame)
        task = asyncio.create_task(self._recognise(recogniser, language, utterance), name="personaplex-recognise")
        self._tasks[task] = utterance
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._settled()

    def finish(self) -> None:
        """The utterance is over: its transcript is told."""
        if self._open is None:  # it has failed
            asyncio.get_running_loop().call_soon(self._tell, Final(""))
        else:
            self._open.frames.put_nowait(None)
            self._open = None

    def drop(self) -> None:
        """Hear no more of what was begun."""
        self._open = None
        for task in self._tasks:
            task.cancel()

    async def _recognise(self, recogniser: Recogniser, language: str | None, utterance: _Utterance) -> None:
        """One utterance, from its first frame to its transcript; the next waits for its end."""
        opened: list[Listening] = []
        resampler = soxr.ResampleStream(SAMPLE_RATE, recogniser.rate, 1, dtype="float32", quality="MQ")
        async with self._one_at_a_time:
            try:
                # Kept by the thread itself: whoever is cancelled while it begins must close it all the same.
                await self._worker.run(lambda: opened.append(recogniser.listen(language)))
                (listening,) = opened
                while (sound := await self._take(utterance)) is not None:
                    so_far = await self._worker.run(listening.push, resampler.resample_chunk(sound))
                    if so_far is not None:
                        self._tell(Partial(so_far.text))
                    utterance.n_due -= len(sound) // FRAME_SAMPLES
                    self._settled()
                heard = await self._worker.run(listening.finish)
                self._tell(Final(heard.text))
            except Exception as error:  # a recogniser is somebody else's program
                self._fail(as_error(error, "recogniser"))
                if self._open is utterance:
                    self._open = None
                else:
                    self._tell(Final(""))
            finally:
                self._worker.do(lambda: opened[0].close() if opened else None)

    async def _take(self, utterance: _Utterance) -> np.ndarray | None:
        """The next few frames that wait, [S]; None after the last."""
        frames = [await utterance.frames.get()]
        while frames[-1] is not None and len(frames) < FRAMES_AT_ONCE and not utterance.frames.empty():
            frames.append(utterance.frames.get_nowait())
        if frames[-1] is None and len(frames) > 1:
            utterance.frames.put_nowait(frames.pop())
        return None if frames[-1] is None else np.concatenate([frame for frame in frames if frame is not None])

    async def close(self) -> None:
        """End every utterance and the threads."""
        self.drop()
        judging = [self._judging] if self._judging is not None else []
        self._stop_judging()
        await asyncio.gather(*self._tasks, *judging, return_exceptions=True)
        self._worker.close()
        self._judge_worker.close()
