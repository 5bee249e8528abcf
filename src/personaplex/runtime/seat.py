"""One conversation on the host: what it has sent and not yet heard, and what it is told. Nothing here computes."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import mlx.core as mx
import numpy as np

from personaplex.audio import Framer, rms
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Degenerate,
    Ended,
    EndReason,
    Error,
    Interrupted,
    Mailbox,
    Overrun,
    PromptChoice,
    Ready,
    Settings,
    VoiceChoice,
)
from personaplex.engine.sampling import Sampling
from personaplex.errors import Closed, PersonaPlexError, UsageError
from personaplex.guard import Guard, Kind
from personaplex.models.streams import AGENT, TEXT, UNGENERATED
from personaplex.runtime.limits import CALM_FRAMES, RECOVERIES
from personaplex.runtime.slots import Lease
from personaplex.steps import StepMeasure
from personaplex.text import TextStream
from personaplex.turns import QUIET_FRAMES, QUIET_RMS, Turn, UserTurn
from personaplex.units import FRAME_RATE

if TYPE_CHECKING:
    from personaplex.vad import SpeechDetector

Change: TypeAlias = "dict[str, VoiceChoice | PromptChoice]"
"""Settings that are to become others, by name."""


class Forced(NamedTuple):
    """What is decided of a frame beforehand: its text `token`, or that the agent is `silent` in it."""

    token: int = UNGENERATED
    silent: bool = False


@dataclass
class Heard:
    """What one step made of a slot: the agent's `pcm` [1920] and `tokens` [17]; text counts only if `valid`.

    `entropy` is the mean of the agent's codes, in nats; `hears` says that what the codec made of the user is finite;
    `measure` is what a recording keeps of the step.
    """

    pcm: np.ndarray
    tokens: np.ndarray
    valid: bool
    entropy: float
    hears: bool = True
    measure: StepMeasure | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the model still computes with numbers."""
        return bool(self.hears and np.isfinite(self.entropy) and np.isfinite(self.pcm).all())


@dataclass(eq=False)
class Seat:
    """The host's half of a lease. `inbox` holds whole frames [1920]; the engine's lock guards every field.

    `n_frames` counts the frames lived, `age` those remembered: fewer, once it was set back, than `furthest`, the most
    that were written into the rings. `marks` are earlier states of the whole batch without rings, by this
    conversation's age then; rings of `spare_frames` reach them. `asked` are changes of the settings that are to be
    read, and whether what was said is kept; `coming` are the settings with those that were read. `change` waits for the
    agent's next pause: it `forgets`, or `inside` is what it reads. Meanwhile the conversation `is_held`, and no frame
    of it is stepped. `script` is what is decided of the frames after `forced`, which hold for the last and the next.
    """

    lease: Lease
    settings: Settings
    seed: int
    sampling: Sampling
    text: TextStream
    padding: tuple[int, ...]
    spare_frames: int = 0
    mailbox: Mailbox = field(default_factory=Mailbox)
    framer: Framer = field(default_factory=Framer)
    inbox: deque[np.ndarray] = field(default_factory=deque)
    ready: Future[None] = field(default_factory=Future)
    is_ready: bool = False
    finishing: bool = False
    in_step: bool = False
    n_frames: int = 0
    age: int = 0
    furthest: int = 0
    n_dropped: int = 0
    untold: int = 0
    marks: deque[tuple[int, list[mx.array]]] = field(default_factory=deque)
    n_recoveries: int = 0
    calm_at: int = 0
    asked: list[tuple[Change, bool]] = field(default_factory=list)
    is_reading: bool = False
    coming: Settings = field(init=False)
    change: Callable[[], None] | None = None
    forgets: bool = False
    inside: Change = field(default_factory=dict)
    is_held: bool = False
    script: deque[Forced] = field(default_factory=deque)
    forced: tuple[Forced, Forced] = (Forced(), Forced())
    agent: Turn = field(default_factory=Turn)
    agent_began: int = 0
    talked_over: bool = False
    user: UserTurn = field(default_factory=UserTurn)
    user_began: int = 0
    detector: SpeechDetector | None = None
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.coming = self.settings
        self.guard = Guard(self.padding)

    @property
    def unheard(self) -> np.ndarray:
        """Every sample that was sent and not heard."""
        return np.concatenate([*self.inbox, self.framer.rest])

    def take_in(self, pcm: np.ndarray, most: int, dropped: int = 0) -> None:
        """Queue samples [S]; of more than `most` unheard frames the oldest are shed, and told.

        Before `pcm`, as many frames as `dropped` were shed already.
        """
        for frame in self.framer.push(pcm):
            self.inbox.append(frame.copy())  # a view would keep all of a long piece
            if len(self.inbox) > most:
                self.inbox.popleft()
                dropped += 1
        self.n_dropped += dropped
        self.untold += dropped
        self._tell_of_shedding()

    def _tell_of_shedding(self) -> None:
        """`Ready` is the first event, so what is shed before it is told after it."""
        if self.is_ready and self.untold:
            self.mailbox.put(Overrun(self.n_frames, self.untold, self.n_dropped))
            self.untold = 0

    def no_more_input(self) -> None:
        """Queue what is left of a frame, padded; the conversation ends when all is heard."""
        self.inbox.extend(self.framer.flush())
        self.finishing = True

    @property
    def is_done(self) -> bool:
        """Nothing more will come, and all that came was heard."""
        return self.finishing and self.is_ready and not self.inbox and not self.in_step

    @property
    def is_waiting(self) -> bool:
        """A frame of it can be heard now."""
        return self.is_ready and not self.is_held and bool(self.inbox)

    def next_frame(self) -> np.ndarray | None:
        """The frame to be heard in the next step, if there is one."""
        if not self.is_waiting:
            return None
        self.in_step = True
        self.forced = self.forced[1], self.script.popleft() if self.script else Forced()
        return self.inbox.popleft()

    def cancel(self) -> None:
        """Be silent until the turn is over, if there is one, and say nothing that waits to be said."""
        silent = QUIET_FRAMES if self.agent.speaking else sum(frame.silent for frame in self.script)
        self.script = deque([Forced(silent=True)] * silent)

    def begin(self, *, kept: bool = False) -> None:
        """The slot holds this conversation now."""
        self.is_ready = True
        self.mailbox.put(Ready(self.n_frames, self.seed, kept))
        if self.agent.speaking:  # a snapshot was taken in the middle of a turn
            self.mailbox.put(AgentStarted(self.n_frames))
        self._tell_of_shedding()
        if not self.ready.done():
            self.ready.set_result(None)

    def ask(self, voice: VoiceChoice, prompt: PromptChoice, *, keep: bool) -> bool:
        """Ask for another voice or role (None: as it is); whether somebody must begin to read what was asked for.

        What was asked for earlier, is not being read yet and would not last is dropped: no more than a few wait.
        """
        change: Change = {"voice": voice, "prompt": prompt}
        wanted: Change = {name: value for name, value in change.items() if value is not None}
        self.asked = [*(earlier for earlier in self.asked if not earlier[0].keys() <= wanted.keys()), (wanted, keep)]
        idle, self.is_reading = not self.is_reading, True
        return idle

    def with_change(self, change: Change) -> Settings:
        """The settings that are coming, with another change."""
        return dataclasses.replace(self.coming, **change)  # type: ignore[arg-type]

    def begin_again(self, settings: Settings, *, kept: bool = False) -> None:
        """The slot holds this conversation with another voice or role, and nothing of what was said unless `kept`."""
        self.settings, self.guard, self.forced = settings, Guard(self.padding), (Forced(), Forced())
        self.marks.clear()
        if not kept:
            self.age = self.furthest = 0
            self.script.clear()
            if rest := self.text.flush():
                self.mailbox.put(AgentText(max(self.n_frames - 1, 0), rest))
        self.begin(kept=kept)

    def tell(self, heard: Heard) -> int:
        """The events of one step; how many are unread now."""
        at, self.n_frames, self.age = self.n_frames, self.n_frames + 1, self.age + 1
        self.furthest = max(self.furthest, self.age)
        token, silenced = int(heard.tokens[TEXT]), self.forced[0].silent
        sounds = not silenced and (rms(heard.pcm) >= QUIET_RMS or (heard.valid and token not in self.padding))
        before, self.agent = self.agent, Turn() if silenced else self.agent.after(sounds)
        if self.agent.speaking and not before.speaking:
            self.agent_began = at
            self.mailbox.put(AgentStarted(at))
        if sounds:
            self.talked_over = self.user.speaking and self.user_began > self.agent_began
        unread = self.mailbox.put(Audio(at, heard.pcm, heard.measure))
        text = self.text.push(token) if heard.valid else ""
        if text:
            unread = self.mailbox.put(AgentText(at, text))
        if before.speaking and not self.agent.speaking:
            if self.talked_over or silenced:
                self.mailbox.put(Interrupted(at))
            unread = self.mailbox.put(AgentEnded(at))
        return unread

    def break_off(self) -> None:
        """What came of the frame is no numbers, and nothing of it is told but that."""
        self.mailbox.put(Degenerate(self.n_frames, "not finite"))

    def judge(self, heard: Heard) -> Kind | None:
        """Whether the agent's speech is no speech any more, as of the step told last; told when it begins."""
        if self.forced[0].silent:
            return None
        kind = self.guard.watch(heard.pcm, int(heard.tokens[TEXT]), heard.tokens[AGENT], heard.entropy)
        if kind is not None:
            self.mailbox.put(Degenerate(self.n_frames - 1, kind))
        return kind

    def mark(self, state: list[mx.array]) -> None:
        """Remember where the slot is now, at this age."""
        if self.marks and self.marks[-1][0] == self.age:
            self.marks.pop()
        self.marks.append((self.age, state))
        self._forget_overwritten()

    def _forget_overwritten(self) -> None:
        """Drop the marks whose keys and values the rings do not hold any more, even if it was set back since."""
        while self.marks and self.marks[0][0] < self.furthest - self.spare_frames:
            self.marks.popleft()

    def go_back(self, n_frames: float, *, or_less: bool = False) -> tuple[int, list[mx.array]]:
        """The latest mark that is `n_frames` old or older; later ones are forgotten, and so are the guard's signs.

        Raises UsageError for none; with `or_less` the oldest mark will do.
        """
        self._forget_overwritten()
        if not self.marks or (self.marks[0][0] > self.age - n_frames and not or_less):
            known = self.age - self.marks[0][0] if self.marks else 0
            raise UsageError(
                f"the conversation cannot go back {n_frames / FRAME_RATE:.1f} s: it remembers {known} frames"
            )
        while len(self.marks) > 1 and self.marks[-1][0] > self.age - n_frames:
            self.marks.pop()
        self.guard, self.forced = Guard(self.padding), (Forced(), Forced())
        self.script.clear()
        return self.marks[-1]

    def may_recover(self) -> bool:
        """Whether to set it back once more, now that it degenerates; counted, because what never helps must end."""
        self._forget_overwritten()
        self.n_recoveries = 1 if self.n_frames > self.calm_at else self.n_recoveries + 1
        if not self.marks or self.n_recoveries > RECOVERIES:
            return False
        self.calm_at = self.n_frames + CALM_FRAMES
        return True

    def end(self, reason: EndReason, error: PersonaPlexError | None = None) -> None:
        """The last events."""
        if rest := self.text.flush():
            self.mailbox.put(AgentText(max(self.n_frames - 1, 0), rest))
        if error is not None:
            self.mailbox.put(Error(self.n_frames, error))
        self.mailbox.put(Ended(self.n_frames, reason))
        self.inbox.clear()
        self.marks.clear()  # somebody may still hold this, and read
        self.change = None
        if not self.ready.done():
            self.ready.set_exception(error or Closed(f"the conversation ended before it was ready ({reason})"))
