"""A duplex model with a deputy: what the user said is answered by somebody else. Experimental, and off by default.

A recogniser listens in, as in `personaplex.cascade.transcribed`; a `Deputy` is asked for an answer to what it
understood. If there is one, the model falls silent and the answer is heard in the deputy's voice, while the model is
made to say the same words unheard, so that it remembers what the user heard; or the model says it itself.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from personaplex.cascade.deputy import Deputy
from personaplex.cascade.engine import Recogniser
from personaplex.cascade.relay import Relay
from personaplex.cascade.transcribed import Transcribed, TranscribedCall
from personaplex.conversation import Backend, Conversation, EventStream, PromptChoice, Settings, VoiceChoice
from personaplex.errors import UsageError
from personaplex.text import PROMPTS


class Delegated(Transcribed):
    """A `backend` in whose conversations `deputy` answers; both are closed with this, and so is the recogniser.

    `patient`: no frame is told while an answer is made, as suits recordings. Raises UsageError for a backend that
    cannot be told what to say.
    """

    def __init__(
        self,
        backend: Backend,
        deputy: Deputy,
        recogniser: str | None = None,
        language: str | None = None,
        *,
        patient: bool = False,
    ) -> None:
        if not (backend.capabilities.text_input and backend.capabilities.cancel):
            raise UsageError("a delegate needs a backend that takes texts to say, and can be cancelled")
        super().__init__(backend, recogniser, language)
        self._deputy = deputy
        self._patient = patient
        self._relays: set[Future[None]] = set()

    def open(self, settings: Settings = Settings()) -> DelegatedCall:  # noqa: B008 - frozen
        """Begin a conversation. Raises what the backend raises."""
        return self.listen_in(self._backend.open(settings), settings)

    def listen_in(self, call: Conversation, settings: Settings = Settings()) -> DelegatedCall:  # noqa: B008 - frozen
        """The same conversation, of which nobody has read events yet, with the deputy."""
        delegated = DelegatedCall(call, self._recogniser, self._language, self._deputy, settings, patient=self._patient)
        self._relays.add(delegated.done)
        delegated.done.add_done_callback(self._relays.discard)
        return self._kept(delegated)

    def close(self) -> None:
        """Close the backend, the recogniser and the deputy."""
        super().close()
        for relay in list(self._relays):
            relay.result()
        self._deputy.close()


class DelegatedCall(TranscribedCall):
    """A conversation in which a deputy may answer; whatever else the backend's conversations can do, it can."""

    def __init__(
        self,
        call: Conversation,
        recogniser: Recogniser,
        language: str | None,
        deputy: Deputy,
        settings: Settings,
        *,
        patient: bool,
    ) -> None:
        super().__init__(call, recogniser, language)
        self._relay = Relay(call, self._scribe, deputy, _role(settings.prompt), settings.seed, patient=patient)
        self.done = asyncio.run_coroutine_threadsafe(self._relay.run(), deputy.loop)

    def send_text(self, text: str) -> None:
        """Give a text that the user typed; the deputy stops, and a model that repeats it."""
        if text.strip():
            (self.cancel if self._relay.is_muting else self._relay.stop)()
        self._call.send_text(text)

    def cancel(self) -> None:
        """Make the agent stop, and the deputy."""
        self._call.cancel()
        self._relay.stop()

    def update(self, *, voice: VoiceChoice = None, prompt: PromptChoice = None, keep_history: bool = False) -> None:
        """Change voice or prompt; the deputy has it from its next answer on, and drops one that is forgotten."""
        self._call.update(voice=voice, prompt=prompt, keep_history=keep_history)
        if prompt is not None:
            self._relay.role = _role(prompt)

    def events(self) -> EventStream:
        """The backend's events, the user's text, and what the deputy says in the model's place."""
        return EventStream(self._relay.mailbox, self)


def _role(prompt: PromptChoice) -> str:
    return PROMPTS.get(prompt, prompt) if isinstance(prompt, str) else ""
