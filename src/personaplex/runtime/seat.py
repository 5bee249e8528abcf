"""One conversation on the host: what it has sent and not yet heard, and what it is told. No MLX in here."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from personaplex.audio import Framer
from personaplex.conversation import AgentText, Audio, Ended, EndReason, Error, Mailbox, Overrun, Ready, Settings
from personaplex.engine.sampling import Sampling
from personaplex.errors import Closed, PersonaPlexError
from personaplex.runtime.slots import Lease
from personaplex.text import TextStream


@dataclass
class Heard:
    """What one step made of a slot: the agent's `pcm` [1920] and `tokens` [17]; text counts only if `valid`."""

    pcm: np.ndarray
    tokens: np.ndarray
    valid: bool


@dataclass(eq=False)
class Seat:
    """The host's half of a lease. `inbox` holds whole frames [1920]; the engine's lock guards every field."""

    lease: Lease
    settings: Settings
    seed: int
    sampling: Sampling
    text: TextStream
    mailbox: Mailbox = field(default_factory=Mailbox)
    framer: Framer = field(default_factory=Framer)
    inbox: deque[np.ndarray] = field(default_factory=deque)
    ready: Future[None] = field(default_factory=Future)
    is_ready: bool = False
    finishing: bool = False
    in_step: bool = False
    n_frames: int = 0
    n_dropped: int = 0

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
        if not self.ready.done():
            self.ready.set_result(None)

    def tell(self, heard: Heard) -> int:
        """The events of one step; how many are unread now."""
        self.in_step = False
        at, self.n_frames = self.n_frames, self.n_frames + 1
        unread = self.mailbox.put(Audio(at, heard.pcm))
        text = self.text.push(int(heard.tokens[0])) if heard.valid else ""
        if text:
            unread = self.mailbox.put(AgentText(at, text))
        return unread

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
