"""What all routes share: the backends, who may be talked with, who is talking. Nothing in here knows HTTP.

A `Service` is made before its model is loaded, so that a server can say that it is loading:

    service = Service(ServerSettings(), lambda: Backends("nano", duplex=Engine("nano", 2), slots={"duplex": 2}))
    service.start()                                     # loads in a thread
    session = service.open("duplex", service.choose(voice="NATF2.pt"), client="moshi")   # raises Busy in words
    async with session: ...                             # a Conversation, counted
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Literal

from personaplex.cascade.registry import default_recogniser
from personaplex.cascade.session import DEFAULTS, ChatSession, Engines, chosen
from personaplex.conversation import Backend, Settings
from personaplex.engine.sampling import Sampling as ModelSampling
from personaplex.errors import PersonaError, PersonaPlexError, Unavailable, UsageError
from personaplex.persona import Parts, Persona, read_personas
from personaplex.server.backends import Backends, Mode, Sampling
from personaplex.server.history.record import Kind
from personaplex.server.history.store import History
from personaplex.server.log import tell
from personaplex.server.metrics import Metrics
from personaplex.server.refusals import refusal
from personaplex.server.scribe import Scribe
from personaplex.server.session import Session
from personaplex.server.settings import ServerSettings

__all__ = ["Backends", "Mode", "Sampling", "Service", "State"]

State = Literal["loading", "ready", "draining", "failed"]

_FILE_SUFFIXES = (".pt", ".safetensors")
"""Of voices as the reference's clients name them."""


class Service:
    """One server's inside. `load` is called in a thread of its own, once. Any thread may call anything."""

    def __init__(
        self,
        settings: ServerSettings,
        load: Callable[[], Backends],
        personas: Mapping[str, Persona] | None = None,
    ) -> None:
        self.settings = settings
        self.personas = read_personas() if personas is None else personas
        if settings.persona not in self.personas:
            raise PersonaError(f"unknown persona {settings.persona!r}; there are {', '.join(sorted(self.personas))}")
        self.metrics = Metrics(self._gauges)
        self.loaded: Future[Backends] = Future()
        """What `load` gave, or raised."""
        self._load = load
        self._lock = threading.Lock()
        self._sessions: dict[int, tuple[Mode, float, weakref.ref[Session]]] = {}
        self._vanished: deque[int] = deque()
        self._state: State = "loading"
        self._closed = False
        self._watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.engines = Engines()
        """Recognisers, language models and synthesisers of those who do not need a slot; of one event loop."""
        self._defaults = DEFAULTS
        self._history = None if settings.history is None else self._open_history()

    @classmethod
    def of(cls, backends: Backends, settings: ServerSettings = ServerSettings()) -> Service:  # noqa: B008 - frozen
        """A service that is loaded already."""
        service = cls(settings, lambda: backends)
        service._run_load()
        return service

    # Loading and ending.

    def start(self) -> None:
        """Begin to load; `loaded` tells when it is done, or what went wrong. The thread ends with the process."""
        threading.Thread(target=self._run_load, name="personaplex-loader", daemon=True).start()

    def _run_load(self) -> None:
        try:
            backends = self._load()
        except BaseException as error:
            self._state = "failed"
            tell("could not load", error=None if isinstance(error, PersonaPlexError) else error, reason=error)
            self.loaded.set_exception(error)
            return
        # Looked up here, in the thread that loads: it would hold up everybody's sound.
        self._defaults = dataclasses.replace(DEFAULTS, recogniser=default_recogniser())
        backends.watch(self.metrics.step.observe)
        with self._lock:
            gone = self._closed
            if not gone:
                self._state = "ready" if self._state == "loading" else self._state
                self.loaded.set_result(backends)
        if gone:
            backends.close()
            self.loaded.set_exception(Unavailable("the server was stopped while it loaded its model"))
        else:
            tell("ready", model=backends.model_name, slots=dict(backends.slots))

    @property
    def state(self) -> State:
        """Where the service is between loading and its end."""
        return self._state

    @property
    def backends(self) -> Backends:
        """What was loaded. Raises Unavailable while there is nothing."""
        if self._state == "loading" or not self.loaded.done():
            raise Unavailable("the server is loading its model; try again in a moment")
        if self.loaded.exception() is not None:
            raise Unavailable("the server could not load its model; its log says why")
        return self.loaded.result()

    async def drain(self, seconds: float | None = None) -> None:
        """Take nobody any more, and wait until all have gone, at most `seconds` (default: the settings')."""
        self.begin_drain()
        if not await self._until(
            lambda: not self.in_use(), self.settings.drain_seconds if seconds is None else seconds
        ):
            tell("drain time is over", sessions=self.in_use())

    async def wait_for_room(self, mode: Mode) -> None:
        """Wait a moment for a slot, if all are taken: a caller who hung up and calls again may be that fast."""
        if self._state == "ready":
            slots = self.backends.slots.get(mode, 0)
            await self._until(lambda: self.in_use(mode) < slots, self.settings.busy_seconds)

    async def _until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so that the end of a session may bring about, `seconds` at most; whether it is."""
        ended = asyncio.Event()
        watcher = (asyncio.get_running_loop(), ended)
        with self._lock:
            self._watchers.append(watcher)
        try:
            async with asyncio.timeout(seconds):
                while not is_so():
                    with suppress(TimeoutError):  # now and then also without one: a session that nobody held is noticed
                        await asyncio.wait_for(ended.wait(), 1.0)
                    ended.clear()
        except TimeoutError:
            return is_so()
        finally:
            with self._lock:
                self._watchers.remove(watcher)
        return True

    def begin_drain(self) -> None:
        """Take nobody any more; whoever talks goes on."""
        if self._state != "draining":
            self._state = "draining"
            tell("draining", sessions=self.in_use())

    def close(self) -> None:
        """End every conversation and free the backends; waits for them. Harmless when it has been closed."""
        with self._lock:
            was, self._closed = self._closed, True
            self._state = "failed" if self._state == "failed" else "draining"
            done = self.loaded.done() and self.loaded.exception() is None
        if not was and done:
            self.loaded.result().close()

    async def close_chat(self) -> None:
        """Free the engines, in the event loop that used them, and write what the history has not written yet."""
        await self.engines.close()
        with self._lock:
            history, self._history = self._history, None
        if history is not None:
            await history.close()

    @property
    def history(self) -> History:
        """Where what is said is kept; any thread may write. In memory, it is made when it is first asked for."""
        with self._lock:
            if self._history is None:
                self._history = self._open_history()
            return self._history

    def _open_history(self) -> History:
        return History(self.settings.history, self.settings.retention_days)

    # Who can be talked with.

    @property
    def model_name(self) -> str:
        """What the model is called, as in the command line."""
        return self.backends.model_name

    @property
    def duplex(self) -> Backend | None:
        """The full-duplex model, if one is served."""
        return self.backends.duplex

    @property
    def cascade(self) -> Backend | None:
        """Recogniser, language model and voice, if they are served."""
        return self.backends.cascade

    @property
    def modes(self) -> list[Mode]:
        """What is served, the default first."""
        return [mode for mode in ("duplex", "cascade") if self.backends.of(mode) is not None]

    def voices(self, mode: Mode = "duplex") -> list[str]:
        """Names that `choose` takes."""
        return list(self.backends.voices() if mode == "duplex" else self.backends.cascade_voices())

    def voice(self, name: str, mode: Mode = "duplex") -> str:
        """What the backend opens for a voice that a caller named, with or without `.pt`; empty for none.

        Only names of `voices` are taken: nothing a caller writes is ever a path. Raises PersonaError for others.
        """
        if not name:
            return ""
        known = self.voices(mode)
        for known_as in (name, *(name.removesuffix(suffix) for suffix in _FILE_SUFFIXES)):
            if known_as in known:
                return self.backends.find_voice(known_as) if mode == "duplex" else known_as
        raise PersonaError(f"unknown voice {name[:80]!r}; there are {', '.join(known) or 'none'}")

    def persona(self, name: str | None = None) -> Persona:
        """A persona by name, None for the default. Raises PersonaError."""
        found = self.personas.get(name or self.settings.persona)
        if found is None:
            raise PersonaError(f"unknown persona {(name or '')[:80]!r}; there are {', '.join(sorted(self.personas))}")
        return found

    def parts(self, persona: str | None = None) -> Parts:
        """What a persona, None for the default, has of the cascade. Raises PersonaError, Unavailable while loading."""
        return chosen(self.persona(persona), self.backends.parts, self._defaults)

    def choose(
        self,
        persona: str | None = None,
        *,
        voice: str | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        sampling: Sampling | None = None,
        mode: Mode = "duplex",
    ) -> Settings:
        """How a caller's conversation starts: what was asked for, and the persona's own where nothing was (None).

        An empty voice or prompt is none at all. Raises PersonaError for names that nobody knows, UsageError for
        sampling that cannot be.
        """
        _check_sampling(sampling or {}, mode)
        role, named = self.persona(persona), None if voice is None else self.voice(voice, mode)
        if mode == "cascade":
            # A persona's name brings its engines; a role in other words goes with the default's.
            return Settings(named, role.name if prompt is None else prompt, seed, sampling or None)
        if not self.backends.takes_prompts:
            return Settings("", "", seed, sampling or None)
        own = role.settings(self.voices(), seed)
        mine = dict(own.sampling) if isinstance(own.sampling, Mapping) else {}
        return Settings(
            self.backends.find_voice(own.voice) if named is None and isinstance(own.voice, str) else named,
            own.prompt if prompt is None else prompt,
            seed,
            {**mine, **(sampling or {})} or None,
        )

    # Who is talking.

    def open(
        self, mode: Mode, settings: Settings, *, client: str, persona: str | None = None, record: bool = False
    ) -> Session:
        """Begin a conversation; returns at once. `client` is the protocol that asked, for the numbers.

        What is said in calls of "moshi" and "respond" goes into the history; `persona` is who says it, `record` keeps
        the sound, too.

        Raises Busy when all slots are taken, Unavailable while loading or draining, and what the backend raises.
        """
        try:
            backend = self._backend(mode)
            conversation = backend.open(settings)
        except PersonaPlexError as error:
            self.refused(error, client)
            raise
        scribe = self._scribe(client, persona, record)
        session = Session(conversation, mode, self.metrics, client, self._forget, self._vanished, scribe)
        with self._lock:
            self._sessions[session.number] = (mode, time.monotonic(), weakref.ref(session))
        self.metrics.sessions.labels(mode, client).inc()
        tell("session opened", session=session.number, mode=mode, client=client)
        return session

    def _scribe(self, client: str, persona: str | None, record: bool) -> Scribe | None:
        # `/v1/realtime` writes its own: it knows of items and typed turns, which events do not tell.
        if client not in ("moshi", "respond"):
            return None
        kind: Kind = "moshi" if client == "moshi" else "respond"
        return Scribe(self.history.begin(kind, persona=persona), persona, records=record)

    def refused(self, error: BaseException, client: str) -> None:
        """Count and log that somebody was refused."""
        self.metrics.refusals.labels(refusal(error).code).inc()
        tell("refused", client=client, code=refusal(error).code, error=None)

    def check_takes_work(self) -> None:
        """Raise Unavailable when the server is about to stop."""
        if self._state == "draining":
            raise Unavailable("the server is about to stop and takes no new calls; try another, or again later")

    def _backend(self, mode: Mode) -> Backend:
        self.check_takes_work()
        backend = self.backends.of(mode)
        if backend is None:
            raise Unavailable(f"this server has no {mode} model; it serves {' and '.join(self.modes)}")
        return backend

    def _forget(self, session: int, reason: str) -> None:
        """A session has ended, as was noticed in any thread, perhaps not for the first time."""
        with self._lock:
            found = self._sessions.pop(session, None)
            watchers = list(self._watchers)
        if found is None:
            return
        self.metrics.ends.labels(reason).inc()
        tell("session ended", session=session, reason=reason, seconds=round(time.monotonic() - found[1], 2))
        for loop, event in watchers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def in_use(self, mode: Mode | None = None) -> int:
        """Conversations that are open now, of one mode or of all."""
        while self._vanished:
            self._forget(self._vanished.popleft(), "vanished")
        with self._lock:
            return sum(mode in (None, own) for own, _, _ in self._sessions.values())

    @property
    def is_full(self) -> bool:
        """Whether the first of the modes has no slot left: it is what most come for."""
        return any(self.in_use(mode) >= self.backends.slots.get(mode, 0) for mode in self.modes[:1])

    def chat_session(self, persona: str | None = None, *, seed: int | None = None) -> ChatSession:
        """A conversation in text with a persona. Its engines are shared, and belong to the event loop that uses them.

        Raises PersonaError for an unknown persona.
        """
        parts = self.backends.parts
        return ChatSession(self.persona(persona), personas=self.personas, parts=parts, engines=self.engines, seed=seed)

    def _gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        yield "personaplex_ready", "1 if a caller would be taken.", {}, float(self.is_ready)
        if self._state == "loading" or not self.loaded.done() or self.loaded.exception() is not None:
            return
        backends = self.loaded.result()
        for mode, slots in backends.slots.items():
            yield "personaplex_slots", "Conversations that can be held.", {"mode": mode}, slots
            yield "personaplex_slots_used", "Conversations that are held now.", {"mode": mode}, self.in_use(mode)
        with self._lock:
            held = [session for _, _, known in self._sessions.values() if (session := known()) is not None]
        waiting = [*backends.unheard(), *(session.n_waiting for session in held)]
        description = "Frames of input that wait to be heard."
        yield "personaplex_queue_frames", description, {"of": "sum"}, sum(waiting)
        yield "personaplex_queue_frames", description, {"of": "longest"}, max(waiting, default=0)

    @property
    def is_ready(self) -> bool:
        """Whether a caller would be taken now: loaded, not full, not about to stop."""
        return self._state == "ready" and not self.is_full


def _check_sampling(asked: Sampling, mode: Mode) -> None:
    """Raise UsageError now for what would end the conversation when it begins."""
    known = [field.name for field in dataclasses.fields(ModelSampling)] if mode == "duplex" else ["text_temperature"]
    if unknown := sorted(set(asked) - set(known)):
        raise UsageError(f"unknown sampling {unknown[0][:80]!r}; the {mode} mode knows {', '.join(known)}")
    ModelSampling(**asked)  # type: ignore[arg-type]
