"""One conversation, stepped by whoever holds it: every way to respond is this, fed differently."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event

import mlx.core as mx
import numpy as np

from personaplex.audio import rms
from personaplex.engine.duplex import Duplex, DuplexState, read
from personaplex.engine.generator import Step
from personaplex.engine.sampling import Sampling
from personaplex.errors import UsageError
from personaplex.reply import AgentFrame, Chunk, Reply, TalkState, Timings
from personaplex.steps import StepMeasure, StepRecord
from personaplex.text import TextStream, Tokenizer
from personaplex.turns import QUIET_RMS, Turn
from personaplex.units import FRAME_RATE, FRAME_SAMPLES, FRAME_SECONDS, frames_in


class Talk:
    """A conversation in progress: 80 ms of the user in, 80 ms of the agent out, in lock step."""

    def __init__(self, duplex: Duplex, state: DuplexState, tokenizer: Tokenizer) -> None:
        self._duplex = duplex
        self._state = state
        self._text = TextStream(tokenizer)
        self.n_frames = 0
        self.last_step: Step | None = None

    def hear(self, pcm: np.ndarray) -> AgentFrame:
        """Give the user's next frame [1920], get the agent's."""
        began = time.perf_counter()
        frame, self._state = self._duplex.step(mx.array(pcm, mx.float32)[None], self._state)
        heard = read(frame, self._state)
        tokens, audio, spoke = heard.tokens[0], heard.pcm[0], bool(heard.valid[0])
        step_ms = 1000 * (time.perf_counter() - began)
        index, self.n_frames, self.last_step = self.n_frames, self.n_frames + 1, frame.step
        text = self._text.push(int(tokens[0])) if spoke else ""
        return AgentFrame(index, audio, text, tokens, step_ms, StepMeasure(step_ms, *map(float, heard.entropies[0])))

    def rest_of_text(self) -> str:
        """Text left over when the conversation stops in the middle of a character."""
        return self._text.flush()

    @property
    def state(self) -> DuplexState:
        """The conversation as a value. Holding it while talking on costs a copy of the ring."""
        return self._state


@dataclass(frozen=True)
class StopRule:
    """When a reply is over, counted in frames after the user's recording has ended.

    With `on_silence`, it is over once the agent has been quiet (padding in the text, silence in the sound) for
    `pause` frames after having answered, or for `patience` frames without having answered at all.
    """

    limit: int
    on_silence: bool = True
    pause: int = round(2 * FRAME_RATE)
    patience: int = round(4 * FRAME_RATE)


class SilenceWatch:
    """Follows a conversation frame by frame for a StopRule."""

    def __init__(self, rule: StopRule, padding: tuple[int, ...]) -> None:
        self._rule = rule
        self._padding = padding
        self._user, self._agent = Turn(), Turn()
        self._answered = False

    def is_over(self, user: np.ndarray, frame: AgentFrame, since_end: int) -> str | None:
        """Why the reply is over with this frame, or None; `since_end` counts from the user's end (before: negative)."""
        self._user = self._user.after(rms(user) >= QUIET_RMS)
        has_text = int(frame.tokens[0]) not in self._padding
        self._agent = self._agent.after(rms(frame.audio) >= QUIET_RMS or has_text)
        if self._user.quiet == 0:
            self._answered = False
        if self._agent.quiet == 0:
            self._answered = True
        if since_end < 0:
            return None
        enough = self._rule.pause if self._answered else self._rule.patience
        if self._rule.on_silence and min(self._agent.quiet, self._user.quiet) >= enough:
            return "silence"
        return "limit" if since_end >= self._rule.limit else None


class ReplyStream:
    """A reply as it is made: iterate for chunks, the last always marked; `reply` holds all of it afterwards.

    `cancel` may be called from any thread: the frame in progress is finished and the chunk that holds it is the last.
    Iterate in the thread that loaded the model.
    """

    def __init__(
        self,
        talk: Talk,
        user: np.ndarray,
        rule: StopRule,
        *,
        padding: tuple[int, ...],
        chunk_frames: int,
        sampling: Sampling,
        seed: int,
        prefill_ms: float,
        prompt_frames: int,
        on_frame: Callable[[int, int], None] | None = None,
    ) -> None:
        self._talk = talk
        self._user = user
        self._watch = SilenceWatch(rule, padding)
        self._chunk_frames = chunk_frames
        self._sampling = sampling
        self.seed = seed
        self.prefill_ms = prefill_ms
        self.prompt_frames = prompt_frames
        self.most_frames = frames_in(len(user)) + rule.limit
        self.on_frame = on_frame
        self._cancelled = Event()
        self._frames: list[AgentFrame] = []
        self._text: list[str] = []
        self._chunks = self._run()
        self._reply: Reply | None = None

    def cancel(self) -> None:
        """Stop after the frame in progress."""
        self._cancelled.set()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def _run(self) -> Iterator[Chunk]:
        sent, index, stopped = 0, 0, None
        while stopped is None:
            stopped = "cancelled" if self._cancelled.is_set() else self._advance()
            if stopped is not None:
                self._text.append(self._talk.rest_of_text())
                self._reply = self._whole(stopped)
            if stopped is not None or len(self._frames) - sent == self._chunk_frames:
                frames, text = self._frames[sent:], "".join(self._text[sent:])
                yield Chunk(index, sent, _audio(frames), text, _tokens(frames), stopped is not None)
                sent, index = len(self._frames), index + 1

    def _advance(self) -> str | None:
        """Step one frame; why the reply is over with it, or None."""
        at, n_user = len(self._frames), frames_in(len(self._user))
        heard = self._user[at * FRAME_SAMPLES : (at + 1) * FRAME_SAMPLES]
        heard = np.pad(heard, (0, FRAME_SAMPLES - len(heard)))
        frame = self._talk.hear(heard)
        self._frames.append(frame)
        self._text.append(frame.text)
        if self.on_frame is not None:
            self.on_frame(at + 1, self.most_frames)
        return self._watch.is_over(heard, frame, at + 1 - n_user)

    def _whole(self, stopped: str) -> Reply:
        return Reply(
            _audio(self._frames),
            "".join(self._text).strip(),
            _tokens(self._frames),
            Timings(self.prefill_ms, [frame.step_ms for frame in self._frames]),
            self.seed,
            min(frames_in(len(self._user)), len(self._frames)),
            stopped,
            TalkState(self._talk.state, self._sampling),
            tuple(self._text),
            StepRecord(
                [frame.index * FRAME_SECONDS for frame in self._frames],
                [frame.measure for frame in self._frames if frame.measure is not None],
            ),
        )

    @property
    def reply(self) -> Reply:
        """The whole reply; iterates to the end first if that has not happened."""
        for _ in self._chunks:
            pass
        if self._reply is None:
            raise UsageError("this reply stream was closed before its end; cancel() it to keep what was said")
        return self._reply


def _audio(frames: list[AgentFrame]) -> np.ndarray:
    return np.concatenate([frame.audio for frame in frames]) if frames else np.zeros(0, np.float32)


def _tokens(frames: list[AgentFrame]) -> np.ndarray:
    return np.stack([frame.tokens for frame in frames], axis=1) if frames else np.zeros((17, 0), np.int32)
