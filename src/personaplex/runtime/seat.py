"""One conversation on the host: what it has sent and not yet heard, and what it is told. Nothing here computes."""

from __future__ import annotations

import base64
import dataclasses
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    Ready,
    Settings,
)
from personaplex.engine.sampling import Sampling
from personaplex.errors import Closed, PersonaPlexError, UsageError
from personaplex.guard import Guard, Kind
from personaplex.models.streams import AGENT, TEXT
from personaplex.runtime.slots import Lease
from personaplex.text import TextStream, Tokenizer
from personaplex.turns import QUIET_RMS, Turn, UserTurn
from personaplex.units import FRAME_RATE
from personaplex.voice import Voice

if TYPE_CHECKING:
    from personaplex.vad import SpeechDetector


@dataclass
class Heard:
    """What one step made of a slot: the agent's `pcm` [1920] and `tokens` [17]; text counts only if `valid`.

    `entropy` is that of the agent's codes, in nats.
    """

    pcm: np.ndarray
    tokens: np.ndarray
    valid: bool
    entropy: float

    @property
    def is_finite(self) -> bool:
        """Whether the model still computes with numbers."""
        return bool(np.isfinite(self.entropy) and np.isfinite(self.pcm).all())


@dataclass(eq=False)
class Seat:
    """The host's half of a lease. `inbox` holds whole frames [1920]; the engine's lock guards every field.

    `n_frames` counts the frames lived, `age` those remembered: fewer, once it was set back. `marks` are earlier states
    of the whole batch without rings, by this conversation's age then. `change` waits for the agent's next pause.
    """

    lease: Lease
    settings: Settings
    seed: int
    sampling: Sampling
    text: TextStream
    padding: tuple[int, ...]
    mailbox: Mailbox = field(default_factory=Mailbox)
    framer: Framer = field(default_factory=Framer)
    inbox: deque[np.ndarray] = field(default_factory=deque)
    ready: Future[None] = field(default_factory=Future)
    is_ready: bool = False
    finishing: bool = False
    in_step: bool = False
    n_frames: int = 0
    age: int = 0
    n_dropped: int = 0
    marks: deque[tuple[int, list[mx.array]]] = field(default_factory=deque)
    change: Callable[[], None] | None = None
    agent: Turn = field(default_factory=Turn)
    agent_began: int = 0
    talked_over: bool = False
    user: UserTurn = field(default_factory=UserTurn)
    user_began: int = 0
    detector: SpeechDetector | None = None
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.guard = Guard(self.padding)

    @property
    def unheard(self) -> np.ndarray:
        """Every sample that was sent and not heard."""
        return np.concatenate([*self.inbox, self.framer.rest])

    def take_in(self, pcm: np.ndarray, most: int) -> None:
        """Queue samples [S]; of more than `most` unheard frames the oldest are shed, and told."""
        dropped = 0
        for frame in self.framer.push(pcm):
            self.inbox.append(frame.copy())  # a view would keep all of a long piece
            if len(self.inbox) > most:
                self.inbox.popleft()
                dropped += 1
        if dropped:
            self.n_dropped += dropped
            self.mailbox.put(Overrun(self.n_frames, dropped, self.n_dropped))

    def no_more_input(self) -> None:
        """Queue what is left of a frame, padded; the conversation ends when all is heard."""
        self.inbox.extend(self.framer.flush())
        self.finishing = True

    @property
    def is_done(self) -> bool:
        """Nothing more will come, and all that came was heard."""
        return self.finishing and self.is_ready and not self.inbox and not self.in_step

    def next_frame(self) -> np.ndarray | None:
        """The frame to be heard in the next step, if there is one."""
        if not self.is_ready or not self.inbox:
            return None
        self.in_step = True
        return self.inbox.popleft()

    def begin(self) -> None:
        """The slot holds this conversation now."""
        self.is_ready = True
        self.mailbox.put(Ready(self.n_frames, self.seed))
        if self.agent.speaking:  # a snapshot was taken in the middle of a turn
            self.mailbox.put(AgentStarted(self.n_frames))
        if not self.ready.done():
            self.ready.set_result(None)

    def begin_again(self) -> None:
        """The slot holds this conversation with another voice or role, and nothing of what was said."""
        self.change, self.age, self.guard = None, 0, Guard(self.padding)
        self.marks.clear()
        if rest := self.text.flush():
            self.mailbox.put(AgentText(max(self.n_frames - 1, 0), rest))
        self.begin()

    def tell(self, heard: Heard) -> int:
        """The events of one step; how many are unread now."""
        at, self.n_frames, self.age = self.n_frames, self.n_frames + 1, self.age + 1
        token = int(heard.tokens[TEXT])
        sounds = rms(heard.pcm) >= QUIET_RMS or (heard.valid and token not in self.padding)
        before, self.agent = self.agent, self.agent.after(sounds)
        if self.agent.speaking and not before.speaking:
            self.agent_began = at
            self.mailbox.put(AgentStarted(at))
        if sounds:
            self.talked_over = self.user.speaking and self.user_began > self.agent_began
        unread = self.mailbox.put(Audio(at, heard.pcm))
        text = self.text.push(token) if heard.valid else ""
        if text:
            unread = self.mailbox.put(AgentText(at, text))
        if before.speaking and not self.agent.speaking:
            if self.talked_over:
                self.mailbox.put(Interrupted(at))
            unread = self.mailbox.put(AgentEnded(at))
        return unread

    def judge(self, heard: Heard) -> Kind | None:
        """Whether the agent's speech is no speech any more, as of the step told last; told when it begins."""
        kind = self.guard.watch(heard.pcm, int(heard.tokens[TEXT]), heard.tokens[AGENT], heard.entropy)
        if kind is not None:
            self.mailbox.put(Degenerate(self.n_frames - 1, kind))
        return kind

    def go_back(self, n_frames: float) -> tuple[int, list[mx.array]]:
        """The latest mark that is `n_frames` old or older; later ones are forgotten. Raises UsageError for none."""
        if not self.marks or self.marks[0][0] > self.age - n_frames:
            raise UsageError(
                f"the conversation cannot go back {n_frames / FRAME_RATE:.1f} s: it remembers {self.age} frames"
            )
        while self.marks[-1][0] > self.age - n_frames:
            self.marks.pop()
        return self.marks[-1]

    def end(self, reason: EndReason, error: PersonaPlexError | None = None) -> None:
        """The last events."""
        if rest := self.text.flush():
            self.mailbox.put(AgentText(max(self.n_frames - 1, 0), rest))
        if error is not None:
            self.mailbox.put(Error(self.n_frames, error))
        self.mailbox.put(Ended(self.n_frames, reason))
        self.inbox.clear()
        if not self.ready.done():
            self.ready.set_exception(error or Closed(f"the conversation ended before it was ready ({reason})"))


def notes_of(seat: Seat) -> dict[str, Any]:
    """What a snapshot says of a seat, for JSON."""
    voice, prompt = seat.settings.voice, seat.settings.prompt
    return {
        "voice": voice.name if isinstance(voice, Voice) else None if voice is None else str(voice),
        "prompt": prompt if prompt is None or isinstance(prompt, str) else [int(token) for token in prompt],
        "seed": seat.seed,
        "sampling": dataclasses.asdict(seat.sampling),
        "n_frames": seat.n_frames,
        "n_dropped": seat.n_dropped,
        "text": seat.text.held.hex(),
        "agent": list(seat.agent),
        "unheard": base64.b64encode(seat.unheard.astype("<f4").tobytes()).decode(),
    }


def restored(lease: Lease, notes: dict[str, Any], tokenizer: Tokenizer, padding: tuple[int, ...]) -> Seat:
    """The seat that `notes_of` described, in another slot or another process."""
    text = TextStream(tokenizer, bytes.fromhex(notes["text"]))
    sampling = Sampling(**notes["sampling"])
    settings = Settings(notes["voice"], notes["prompt"], notes["seed"], sampling)
    seat = Seat(lease, settings, notes["seed"], sampling, text, padding)
    seat.agent = Turn(*notes["agent"])
    seat.n_frames, seat.n_dropped = notes["n_frames"], notes["n_dropped"]
    unheard = np.frombuffer(base64.b64decode(notes["unheard"]), "<f4")
    seat.inbox.extend(frame.copy() for frame in seat.framer.push(unheard))
    return seat
