"""A conversation's events on their way to whoever holds it, and the deputy's voice among them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import aclosing, suppress
from enum import Enum, auto
from functools import partial
from typing import Any

import numpy as np

from personaplex.cascade.deputy import Deputy
from personaplex.cascade.engine import Message, Role, as_error
from personaplex.cascade.mouth import Mouth
from personaplex.cascade.session import MOST_MESSAGES, sentences_of
from personaplex.cascade.speakable import speakable
from personaplex.cascade.transcribed import UNREAD_FRAMES, Scribe
from personaplex.cascade.worker import Worker
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Conversation,
    Ended,
    Error,
    Event,
    EventStream,
    Interrupted,
    Mailbox,
    Ready,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import Closed, PersonaPlexError
from personaplex.steps import StepMeasure
from personaplex.units import FRAME_SAMPLES

CATCH_UP_FRAMES = 38
"""Three seconds: so long the model may say on, unheard, what the deputy has said to its end."""

FADE_FRAMES = 6
"""Half a second: what a model still says of its last word, or when it is cancelled."""

MOST_CHARACTERS = 4000
"""Of one turn so much is remembered: a duplex model may talk for hours."""


class Heard(Enum):
    """Whose sound is passed on. `NOBODY`: the deputy has ended, and the model still repeats what it said."""

    MODEL = auto()
    DEPUTY = auto()
    NOBODY = auto()


class Relay:
    """One conversation in the deputy's event loop; `stop` may be called from any thread.

    What the user hears of the deputy is given to the model to say, letter for letter as it is heard (`_n_told`), and
    the model is heard again when it has said as much (`_n_repeated`). What is told of the agent's turns is what is
    heard of it (`_told_speaking`), not what the model does meanwhile (`_model_speaks`).
    """

    def __init__(
        self, call: Conversation, scribe: Scribe, deputy: Deputy, role: str, seed: int | None, *, patient: bool
    ) -> None:
        self.mailbox = Mailbox()
        self.role = role
        self._call = call
        self._scribe = scribe
        self._deputy = deputy
        self._seed = seed
        self._patient = patient
        self._history: list[Message] = []
        self._heard, self._until, self._frame = Heard.MODEL, 0, 0
        self._told_speaking = self._model_speaks = False
        self._user_speaks, self._asked = False, ""
        self._n_told = self._n_repeated = 0
        self._mouth = Mouth()
        self._answering: asyncio.Task[None] | None = None
        self._dropped: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._function_worker, self._voice_worker = Worker("delegate"), Worker("voice")

    # Any thread.

    @property
    def is_muting(self) -> bool:
        """Whether the deputy is heard, or the model still repeats it unheard."""
        return self._heard is not Heard.MODEL

    def stop(self) -> None:
        """The model was cancelled: the deputy is, too."""
        with suppress(RuntimeError):  # the loop has ended
            self._deputy.loop.call_soon_threadsafe(self._stop)

    # The loop.

    async def run(self) -> None:
        """From the first event to the last."""
        self._over: asyncio.Future[Any] = asyncio.wrap_future(self._scribe.over)
        try:
            async for event in EventStream(self._scribe.mailbox, self._call):
                if isinstance(event, Ended):
                    await self._wind_up()
                await self._follow(event)
        except Exception as error:  # whoever holds the conversation must be told whatever it was
            self.mailbox.put(Error(self._frame, as_error(error, "delegate")))
            self.mailbox.put(Ended(self._frame, "error"))
            self._call.close()
            await self._wind_up()

    async def _wind_up(self) -> None:
        self._drop()
        await asyncio.gather(*self._dropped, return_exceptions=True)
        self._function_worker.close()
        self._voice_worker.close()

    async def _follow(self, event: Event) -> None:
        self._frame = event.frame
        is_muted = self._heard is not Heard.MODEL
        match event:
            case Audio(frame, pcm, measure):
                await self._settle()
                return self._play(frame, pcm, measure)
            case AgentText(_, text):
                self._n_repeated += _n_letters(text)
                if is_muted:
                    return None
                self._remember("assistant", text)
            case AgentStarted() | AgentEnded():
                self._model_speaks = isinstance(event, AgentStarted)
                return None if is_muted else self._tell_speaking(self._model_speaks)
            case Interrupted() if is_muted or not self._told_speaking:
                return None
            case UserStarted():
                self._user_speaks = True
                self._interrupt()
            case UserStopped():
                self._user_speaks = False
            case UserText(_, text, True):
                self._asked += text + " "
            case Ready(kept=False):
                self._history.clear()
                self._asked = ""
                self._stop()
        self.mailbox.put(event)
        # A slow recogniser brings an utterance while the next is spoken: nobody is answered into their speech.
        if self._asked and not self._user_speaks:
            self._ask()
        return None

    def _play(self, frame: int, pcm: np.ndarray, measure: StepMeasure | None) -> None:
        """Pass on whose sound is to be heard."""
        if self._heard is Heard.DEPUTY and self._mouth.n_waiting == 0 and not self._is_answering:
            self._tell_speaking(False)
            self._heard, self._until = Heard.NOBODY, frame + CATCH_UP_FRAMES
        if self._heard is Heard.NOBODY:
            self._watch_the_model(frame)
        said = ""
        if self._heard is Heard.DEPUTY:
            self._tell_speaking(True)
            pcm, said = self._mouth.next()
        elif self._heard is Heard.NOBODY:
            pcm = np.zeros(FRAME_SAMPLES, np.float32)
        if self.mailbox.put(Audio(frame, pcm, measure)) > UNREAD_FRAMES:
            self.mailbox.put(Ended(frame, "unread"))
            self._call.close()
        if said:
            self.mailbox.put(AgentText(frame, said))
            self._remember("assistant", said)
            self._give(said)

    def _watch_the_model(self, frame: int) -> None:
        """Once it has caught up, or will not any more, it is heard again."""
        if self._n_repeated >= self._n_told:
            self._until = min(self._until, frame + FADE_FRAMES)
        if frame >= self._until and self._n_repeated < self._n_told:
            self._act(self._call.cancel)
            self._n_told, self._until = 0, frame + FADE_FRAMES
        if frame >= self._until:
            self._heard = Heard.MODEL
            self._tell_speaking(self._model_speaks)

    def _tell_speaking(self, speaks: bool) -> None:
        if speaks != self._told_speaking:
            self._told_speaking = speaks
            self.mailbox.put((AgentStarted if speaks else AgentEnded)(self._frame))

    async def _settle(self) -> None:
        """If there is time, wait for what is being understood, thought and made into sound."""
        if not self._patient:
            return
        understood: Future[None] = Future()
        self._scribe.items.put(understood)
        await asyncio.wait({asyncio.wrap_future(understood), self._over}, return_when=asyncio.FIRST_COMPLETED)
        while self._is_answering and self._mouth.n_waiting < FRAME_SAMPLES and not self._over.done():
            self._moved.clear()
            moved: asyncio.Future[Any] = asyncio.ensure_future(self._moved.wait())
            await asyncio.wait({moved, self._over}, return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()

    # The deputy's turn.

    @property
    def _is_answering(self) -> bool:
        return self._answering is not None and not self._answering.done()

    def _ask(self) -> None:
        if self._heard is Heard.DEPUTY:
            self._interrupt()
        self._drop()
        self._remember("user", self._asked.strip())
        self._asked = ""
        *before, asked = (Message(turn.role, turn.content.strip()) for turn in self._history)
        self._answering = asyncio.create_task(self._answer(asked.content, before), name="personaplex-answer")
        self._answering.add_done_callback(lambda _: self._moved.set())

    async def _answer(self, text: str, before: list[Message]) -> None:
        """Sentence by sentence; what goes wrong is told, and what was made by then is heard to its end."""
        await asyncio.gather(*self._dropped, return_exceptions=True)
        deputy, voice, parts, begun = self._deputy, self._deputy.voice, self._deputy.parts, False
        try:
            pieces = deputy.answer(text, self.role, before, self._seed, self._function_worker)
            async with aclosing(sentences_of(pieces)) as sentences:
                async for sentence in sentences:
                    if not (said := speakable(sentence)):
                        continue
                    if voice is not None:
                        made = self._voice_worker.iterate(partial(voice.say, said, parts.voice, parts.language))
                        await self._mouth.say(made, said, self._take_the_floor)
                        continue
                    if not begun:
                        self._silence_the_model()
                    begun = True
                    self._give(said + " ")
        except Exception as error:  # a delegate is somebody else's program, and so is a voice
            self.mailbox.put(Error(self._frame, as_error(error, "delegate")))

    def _take_the_floor(self) -> None:
        if self._heard is not Heard.DEPUTY:
            self._silence_the_model()
            self._heard = Heard.DEPUTY
        self._moved.set()

    def _silence_the_model(self) -> None:
        self._act(self._call.cancel)
        self._n_told = self._n_repeated = 0

    def _give(self, text: str) -> None:
        """Have the model say what is heard in its place."""
        self._act(partial(self._call.send_text, text))
        self._n_told += _n_letters(text)

    def _interrupt(self) -> None:
        if self._heard is Heard.DEPUTY or self._n_repeated < self._n_told:
            self._act(self._call.cancel)
        self._stop()

    def _stop(self) -> None:
        """The deputy says no more; the model was cancelled if it was to say something."""
        self._drop()
        self._mouth.clear()
        self._n_told = self._n_repeated = 0
        if self._heard is Heard.DEPUTY and self._told_speaking:
            self.mailbox.put(Interrupted(self._frame))
            self._tell_speaking(False)
        if self._heard is not Heard.MODEL:
            self._heard, self._until = Heard.NOBODY, self._frame + FADE_FRAMES

    def _drop(self) -> None:
        if self._answering is not None and self._is_answering:
            self._answering.cancel()
            self._dropped.add(self._answering)
            self._answering.add_done_callback(self._dropped.discard)
        self._answering = None

    def _act(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Closed:
            pass  # the last event is on its way
        except PersonaPlexError as error:
            self.mailbox.put(Error(self._frame, error))

    def _remember(self, role: Role, text: str) -> None:
        if self._history and self._history[-1].role == role:
            before = self._history.pop().content
            text = before + text if role == "assistant" else f"{before} {text}"
        self._history.append(Message(role, text[-MOST_CHARACTERS:]))
        del self._history[:-MOST_MESSAGES]


def _n_letters(text: str) -> int:
    return sum(map(str.isalnum, text))
