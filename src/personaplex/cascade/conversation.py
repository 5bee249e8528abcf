"""One conversation of the cascade, in one event loop: the turn table decides, this does it.

A frame of the user is heard, the table is asked, a frame of the agent is played; language model, voice and recogniser
work beside that, and what they bring is told to the table as it comes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from personaplex.by_turns import Call, Directions, TurnTaking
from personaplex.cascade.ear import Ear, Pauses
from personaplex.cascade.engine import Recogniser, Synthesiser, as_error
from personaplex.cascade.inbox import Inbox
from personaplex.cascade.memory import Memory
from personaplex.cascade.mouth import Mouth
from personaplex.cascade.sentences import SentenceSplitter
from personaplex.cascade.session import ChatSession, Engines
from personaplex.cascade.speakable import speakable
from personaplex.cascade.turns import (
    Action,
    Agent,
    Asked,
    Cancelled,
    Drop,
    DropListening,
    FinishListening,
    Hold,
    Listen,
    Over,
    RanOut,
    Resume,
    Rules,
    Sentence,
    SentenceVoiced,
    State,
    Tell,
    TellText,
    Think,
    Thought,
    Tick,
    TurnEvent,
    Typed,
    Unsaid,
    UserBegan,
    UserEnded,
    Voice,
    Voiced,
    advance,
)
from personaplex.cascade.worker import Worker
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    AnswerBegan,
    AnswerOver,
    Audio,
    Ended,
    EndReason,
    Error,
    Event,
    Interrupted,
    Mailbox,
    Overrun,
    Ready,
    ToolCall,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import Closed, EngineError, PersonaError, PersonaPlexError, UsageError
from personaplex.persona import Parts, Persona
from personaplex.turns import VoiceActivity
from personaplex.units import FRAME_SAMPLES
from personaplex.vad import Detector, new_detector

BY_HAND_SECONDS = 900.0
"""Who tells by hand when they speak may speak for so long."""

UNREAD_FRAMES = 750
"""A minute of sound that nobody has read ends a conversation."""

_TOLD: dict[str, Callable[[int], Event]] = {
    "user started": UserStarted,
    "user stopped": UserStopped,
    "agent started": AgentStarted,
    "agent ended": AgentEnded,
    "interrupted": Interrupted,
}


@dataclass(frozen=True)
class Manner:
    """How conversations are held. `patient`: no time passes while an answer is made, as suits recordings.

    With `pauses` a silence ends the user's turn only where they say so. Not `by_sentence`, an answer is made into sound
    when all of it was thought; to measure what streaming gains.
    """

    rules: Rules = field(default_factory=Rules)
    voice_activity: VoiceActivity = field(
        default_factory=lambda: VoiceActivity(speech_seconds=0.15, silence_seconds=0.6)
    )
    pauses: Pauses | None = None
    detector: Callable[[], Detector] | None = None
    backlog_frames: int = 13
    patient: bool = False
    by_sentence: bool = True


@dataclass(frozen=True)
class Role:
    """Who is to speak: a persona, and what goes before its own choice of parts."""

    persona: Persona
    parts: Parts = field(default_factory=Parts)


class Talk:
    """One conversation. `send`, `finish`, `ask` and `end` may be called from any thread; the rest is the loop's."""

    def __init__(
        self, engines: Engines, role: Role, seed: int | None, manner: Manner, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.seed = random.getrandbits(31) if seed is None else seed
        self.mailbox = Mailbox()
        self.inbox = Inbox(manner.backlog_frames, loop)
        self.ready: Future[None] = Future()
        self.ended: EndReason | None = None
        self.n_frames = 0
        self.n_dropped = 0
        self._engines = engines
        self._manner = manner
        self._rules = manner.rules
        self._loop = loop
        self._role = self._coming = role
        self._state = State()
        self._session = ChatSession(role.persona, personas={}, parts=role.parts, engines=engines, seed=self.seed)
        self._mouth = Mouth()
        self._voice_worker = Worker("voice")
        self.memory = Memory(self._session, self._fail)
        self._asked: tuple[str | None, Directions | None] = None, None
        self._work: set[asyncio.Task[None]] = set()
        self._sentences: asyncio.Queue[str | None] = asyncio.Queue()
        self._changes: list[tuple[Role, bool]] = []
        self._changing: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        detector = (manner.detector or new_detector)()
        self._ear = Ear(detector, manner.voice_activity, self._happen, self._fail, self._moved.set, manner.pauses)
        self._is_opening = True
        self._early: list[TurnEvent] = []
        self._task: asyncio.Task[None] | None = None

    # Any thread.

    def post(self, event: TurnEvent) -> None:
        """Have something happen in the loop, as soon as it is ready."""
        self._loop.call_soon_threadsafe(self._occur, event)

    def call(self, act: Callable[..., None], *arguments: Any) -> None:
        """Have `act` done in the loop."""
        self._loop.call_soon_threadsafe(act, *arguments)

    def ask(self, change: Callable[[Role], Role], *, keep: bool) -> None:
        """Have somebody else speak, from the agent's next pause on."""
        self._loop.call_soon_threadsafe(self._change, change, keep)

    def end(self, reason: EndReason) -> None:
        """End it; what is under way is dropped."""
        if self.ended is None:
            self.ended = reason
            self.inbox.close()
            self.mailbox.put(Ended(self.n_frames, reason))
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._stop)

    # The loop.

    def _occur(self, event: TurnEvent) -> None:
        if self._is_opening:
            self._early.append(event)
        else:
            self._happen(event)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """From the first event to the last."""
        error: PersonaPlexError | None = None
        try:
            self._task = asyncio.current_task()
            if self.ended is not None:
                return
            await self._open(self._role)
            self._be_ready(kept=False)
            self._is_opening = False
            for event in self._early:
                self._happen(event)
            await self._live()
        except asyncio.CancelledError:
            pass  # ended from outside
        except PersonaPlexError as told:
            error = told
        except Exception as unexpected:  # whoever holds the conversation must be told whatever it was
            error = EngineError(f"the conversation broke down: {type(unexpected).__name__}: {unexpected}")
        finally:
            await self._wind_up(error)

    async def _wind_up(self, error: PersonaPlexError | None) -> None:
        self._task = None
        self._happen(Over())
        self._drop_work()
        await self._ear.close()
        if self._changing is not None:
            self._changing.cancel()
        await asyncio.gather(*self._work, *filter(None, [self._changing]), return_exceptions=True)
        self._voice_worker.close()
        await self._session.close()
        if error is not None and self.ended is None:
            self.mailbox.put(Error(self.n_frames, error))
        reason: EndReason = "error" if error is not None else "finished"
        self.end(reason)
        if not self.ready.done():
            self.ready.set_exception(error or Closed(f"the conversation ended before it was ready ({self.ended})"))

    async def _open(self, role: Role) -> None:
        """Have all engines of a role, and know that they fit. Raises what makes it impossible."""
        parts = await self._engines.parts(role.persona, role.parts)
        await self._engines.thinker(parts.llm or "")
        recogniser: Recogniser = await self._engines.recogniser(parts.recogniser or "")
        voice: Synthesiser = await self._engines.synthesiser(parts.synthesiser or "")
        if parts.voice is not None and voice.voices and parts.voice not in voice.voices:
            raise PersonaError(
                f"the synthesiser {parts.synthesiser} has no voice {parts.voice!r}; it has {', '.join(voice.voices)}"
            )
        for engine, languages in ((parts.recogniser, recogniser.languages), (parts.synthesiser, voice.languages)):
            if parts.language is not None and languages and parts.language not in languages:
                known = ", ".join(languages)
                raise UsageError(f"{engine} does not know the language {parts.language!r}; it has {known}")
        self._recogniser, self._voice = recogniser, voice

    def _be_ready(self, *, kept: bool) -> None:
        self.mailbox.put(Ready(self.n_frames, self.seed, kept))
        if not self.ready.done():
            self.ready.set_result(None)

    async def _live(self) -> None:
        while self.ended is None and (frame := await self.inbox.next()) is not None:
            if shed := self.inbox.take_shed():
                self.n_dropped += shed
                self.mailbox.put(Overrun(self.n_frames, shed, self.n_dropped))
            # Who speaks into the agent's speech is not kept waiting for the rest of "uh-huh".
            self._ear.hear(frame, may_pause=self._state.agent in (Agent.IDLE, Agent.THINKING))
            self._happen(Tick(self.n_frames, self._ear.is_voiced))
            await self._settle()
            if self._mouth.n_waiting == 0:
                self._happen(RanOut(self._state.turn))
            await self._apply_change()
            pcm, said = self._mouth.next()
            if said:
                self.memory.said += said
                self.mailbox.put(AgentText(self.n_frames, said))
            n_unread = self.mailbox.put(Audio(self.n_frames, pcm))  # the last of a frame: then more time may pass
            self.n_frames += 1
            if n_unread > UNREAD_FRAMES:
                self.end("unread")
            await asyncio.sleep(0)  # many frames may wait, and others want their turn

    async def _settle(self) -> None:
        """If there is time, wait for what is being recognised, thought and made into sound."""
        while self._manner.patient and self.ended is None and self._is_pending:
            self._moved.clear()
            await self._moved.wait()

    @property
    def _is_pending(self) -> bool:
        state = self._state
        makes = state.thinks or state.n_unvoiced > 0
        short = self._mouth.n_waiting < FRAME_SAMPLES and state.agent is Agent.SPEAKING and makes
        return self._ear.is_busy or (state.n_awaited > 0 and not state.user) or state.agent is Agent.THINKING or short

    def _happen(self, event: TurnEvent) -> None:
        """Ask the table, and do what it says."""
        self._state, actions = advance(self._state, event, self._rules)
        for action in actions:
            self._do(action)
        if self._state.agent is Agent.IDLE:
            self._end_answer()
        self._moved.set()

    def _do(self, action: Action) -> None:
        match action:
            case Listen():
                self._ear.listen(self._recogniser, self._session.parts.language)
            case FinishListening():
                self._ear.finish()
            case DropListening():
                self._ear.drop()
            case Think(turn, text):
                self._end_answer()
                self.memory.begin()
                self.mailbox.put(AnswerBegan(self.n_frames))
                self._sentences = asyncio.Queue()
                self._begin(self._think(turn, text, list(self._work), *self._asked))
                self._asked = None, None
                self._begin(self._speak(turn, self._sentences))
            case Voice(_, text):
                self._sentences.put_nowait(text)
            case Drop(_, unheard):
                self._drop_work()
                self._mouth.clear()
                self.memory.drop(unheard=unheard)
            case Hold():
                self._mouth.held = True
            case Resume():
                self._mouth.held = False
            case Tell(what):
                self.mailbox.put(_TOLD[what](self.n_frames))
            case TellText(text, final):
                self.mailbox.put(UserText(self.n_frames, text, final))

    def _end_answer(self) -> None:
        if self.memory.is_answering:
            self.memory.end()
            self.mailbox.put(AnswerOver(self.n_frames, self.memory.is_dropped))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name="personaplex-answer")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _drop_work(self) -> None:
        for task in self._work:
            task.cancel()

    def _fail(self, error: PersonaPlexError) -> None:
        self.mailbox.put(Error(self.n_frames, error))

    async def _think(
        self,
        turn: int,
        text: str,
        before: list[asyncio.Task[None]],
        instructions: str | None,
        directions: Directions | None,
    ) -> None:
        """One answer, sentence by sentence, once what was dropped `before` has ended."""
        await asyncio.gather(*before, return_exceptions=True)
        if self._changing is not None:
            await asyncio.wait({self._changing})
        if self._changes:
            await self._become(*self._changes.pop())
        self.memory.ask(text)
        splitter = SentenceSplitter()
        whole: list[str] = []

        def take(sentences: Any) -> None:
            for sentence in sentences:
                if not self._manner.by_sentence:
                    whole.append(sentence)
                elif said := speakable(sentence):
                    self._happen(Sentence(turn, said))

        try:
            async with aclosing(self._session.answer(text, instructions, directions)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Call):
                        self.mailbox.put(ToolCall(self.n_frames, piece.name, piece.arguments, piece.id))
                    else:
                        take(splitter.push(piece))
        except Exception as error:  # a language model is somebody else's program
            self._fail(as_error(error, "language model"))
        take(splitter.flush())
        if said := speakable(" ".join(whole)):
            self._happen(Sentence(turn, said))
        self._sentences.put_nowait(None)
        self._happen(Thought(turn))

    async def _speak(self, turn: int, sentences: asyncio.Queue[str | None]) -> None:
        """The sentences of one answer, as they come; one that cannot be said is told of, and the rest goes on."""
        while (text := await sentences.get()) is not None:
            parts, voice = self._session.parts, self._voice
            try:
                pieces = self._voice_worker.iterate(partial(voice.say, text, parts.voice, parts.language))
                await self._mouth.say(pieces, text, partial(self._happen, Voiced(turn)))
            except Exception as error:  # a synthesiser is somebody else's program
                self._fail(as_error(error, "synthesiser"))
            self._happen(SentenceVoiced(turn))

    # Changes.

    def _change(self, change: Callable[[Role], Role], keep: bool) -> None:
        """Remember what is asked for; of changes that were not begun, the last of each kind holds."""
        try:
            self._coming = change(self._coming)
        except PersonaPlexError as error:
            self._fail(error)
            return
        kept = self._changes.pop()[1] if self._changes else True
        self._changes.append((self._coming, kept and keep))

    async def _apply_change(self) -> None:
        """At the agent's pause, become who was asked for, without stopping time for long."""
        if self._changes and self._changing is None and self._state.agent is Agent.IDLE and not self._state.user:
            self._changing = self._loop.create_task(self._become(*self._changes.pop()), name="personaplex-change")
        if self._changing is not None:
            await asyncio.wait({self._changing}, timeout=None if self._manner.patient else 0.05)
            if self._changing.done():
                self._changing = None

    async def _become(self, role: Role, keep: bool) -> None:
        try:
            await self._open(role)
        except Exception as error:
            self._fail(as_error(error, "change"))
            if not self._changes:
                self._coming = self._role
            return
        self._role = role
        self._session.switch_persona(role.persona, parts=role.parts, keep_history=keep)
        self._be_ready(kept=keep)

    # By turns.

    def respond(self, instructions: str | None, directions: Directions | None) -> None:
        """Answer what was said so far."""
        self._asked = instructions, directions
        self._occur(Asked())

    def direct(self, directions: Directions) -> None:
        """How answers are made from now on."""
        self._session.directions = directions

    def take_turns(self, turns: TurnTaking) -> None:
        """How turns are taken from now on; who is speaking has ended."""
        self._occur(UserEnded())
        by_hand = turns.by == "hand"
        longest = BY_HAND_SECONDS if by_hand else self._manner.rules.longest_seconds
        self._rules = replace(
            self._manner.rules, answers=turns.answers, interrupts=turns.interrupts, longest_seconds=longest
        )
        rule = self._manner.voice_activity
        onset = rule.onset if turns.onset is None else turns.onset
        silence = rule.silence_seconds if turns.silence_seconds is None else turns.silence_seconds
        self._ear.by_hand = by_hand
        self._ear.forget(replace(rule, onset=onset, offset=min(rule.offset, onset), silence_seconds=silence))

    def begin_turn(self) -> None:
        """The user begins to speak."""
        self._occur(UserBegan())

    def end_turn(self) -> None:
        """The user has said it."""
        self._occur(UserEnded())
        self._ear.forget()

    def drop_turn(self) -> None:
        """What the user is saying is to be forgotten."""
        self._occur(Unsaid())
        self._ear.forget()

    def cancel(self) -> None:
        """Make the agent stop; from any thread."""
        self.post(Cancelled())

    def type(self, text: str) -> None:
        """The user wrote something; from any thread."""
        self.post(Typed(text))
