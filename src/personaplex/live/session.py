"""One live conversation: whatever happens, in the microphone, in the backend or on the keyboard, one after the other.

The loop is `Session.run`. Everything that happens comes through one queue, so nothing here needs a lock; only the
playout buffer is shared with the device. Knows the seam, and no backend.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeAlias

import numpy as np

from personaplex.audio import rms
from personaplex.conversation import (
    AgentEnded,
    AgentStarted,
    AgentText,
    Audio,
    Conversation,
    Degenerate,
    Ended,
    Error,
    Event,
    EventStream,
    Interrupted,
    Overrun,
    Ready,
    Settings,
    UserStarted,
    UserStopped,
    UserText,
)
from personaplex.errors import Closed, OutputError, PersonaError, PersonaPlexError, Unsupported
from personaplex.live.command import HELP, Command, parse_command
from personaplex.live.device import Captured, Device, Hint, Lost
from personaplex.live.display import Display, Status
from personaplex.live.echo import EchoChoice, echo_for
from personaplex.live.floor import Floor, Holder
from personaplex.live.playout import Playout
from personaplex.live.recording import Recording
from personaplex.persona import Persona
from personaplex.units import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE

Happening: TypeAlias = "Captured | Lost | Hint | str | tuple[int, Event]"
"""Sound, the end of it, a line that was typed, or an event of the n-th conversation of this session."""

QUIET_SECONDS = 4.0
"""A recording that stands for a microphone is over when its agent has been quiet for so long after it."""

PATIENCE_SECONDS = 1.0
"""How long nothing may happen before the device is asked whether it is still there."""

TELL_SECONDS = 10.0
"""How often a person is told in words that the machine is too slow."""

_SHOWN = {AgentStarted: "agent started", AgentEnded: "agent ended", Interrupted: "interrupted"}


@dataclass(frozen=True)
class Roles:
    """What can be named while talking: `personas`, and voices, of which `find_voice` knows more than the model.

    `by_name`: the backend knows the personas itself, and makes of each what it can.
    """

    personas: Mapping[str, Persona]
    model_voices: Sequence[str] = ()
    find_voice: Callable[[str], str] = str
    by_name: bool = False

    def settings(self, name: str, seed: int | None = None) -> Settings:
        """How a conversation with the persona `name` starts. Raises PersonaError naming those there are."""
        if name not in self.personas:
            raise PersonaError(f"unknown persona {name!r}; there are {', '.join(sorted(self.personas))}")
        if self.by_name:
            return Settings(prompt=name, seed=seed)
        own = self.personas[name].settings(self.model_voices, seed)
        return own if own.voice is None else dataclasses.replace(own, voice=self.find_voice(str(own.voice)))


@dataclass
class Session:
    """A microphone and a speaker, and whatever `open` opens, in conversation until one of them ends it.

    After a recording that stands for a microphone, it goes on for at most `tail_seconds`. `record` names a file for
    what is said, which `about` heads. `step_ms` tells the last step
    times, `opening` how the first conversation is opened when that is not as `open(settings)` does it.
    """

    open: Callable[[Settings], Conversation]
    settings: Settings
    device: Device
    floor: Floor
    display: Display
    roles: Roles
    echo: EchoChoice = "off"
    record: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    tail_seconds: float = 16.0
    step_ms: Callable[[], Sequence[float]] = list
    opening: Callable[[], Conversation] | None = None
    happenings: Queue[Happening] = field(default_factory=Queue)

    def __post_init__(self) -> None:
        self.playout = Playout() if self.floor.holder is Holder.BOTH else Playout(most_excess=None)
        self._recording: Recording | None = None
        self._proven = self.settings  # the last that a conversation became ready with
        self._n_opened = 0
        self._is_ready = self._over = self._device_waits = self._told_nan = False
        self._n_sent = self._n_answered = self._n_dropped = self._n_captured = 0
        self._due: deque[tuple[int, Event]] = deque()
        self._audible = (-1, 0)  # a frame of the agent, and after how many captured samples it is heard
        self._error: PersonaPlexError | None = None
        self._failed: PersonaPlexError | None = None
        self._seed: int | None = None
        self._told_drops_at: float | None = None
        self._agent_speaks = False
        self._n_after = self._n_quiet = 0
        self._holder = self.floor.holder
        self._levels = (0.0, 0.0)
        self._n_unshown = 0

    def run(self) -> None:
        """Talk until `!quit`, Ctrl-C, the end of a recording, or an error, which is raised once all is closed."""
        self._begin(self.opening or (lambda: self.open(self.settings)))
        try:
            with self._call:
                while not self._is_ready:
                    self._handle(self._next())
                self.device.start(self.playout, self.happenings.put)
                self._echo = echo_for(self.echo, self.device.delay_seconds)
                self._recording = Recording(self.record, self.about) if self.record else None
                self.device.proceed()
                while not self._over:
                    self._move_on()
                    self._handle(self._next())
        except KeyboardInterrupt:
            pass  # the usual way to stop talking
        finally:
            self._close()
        if self._failed is not None:
            raise self._failed

    def _next(self) -> Happening:
        while True:
            try:
                return self.happenings.get(timeout=PATIENCE_SECONDS)
            except Empty:
                self.device.check()

    def _handle(self, happening: Happening) -> None:
        match happening:
            case Captured():
                self._hear(happening)
            case Lost(error):
                raise error
            case Hint(text):
                self.display.note(text)
            case str():
                self._obey(happening)
            case (n, event):
                if n == self._n_opened:
                    self._follow(event)
        self._watch_the_floor()

    def _move_on(self) -> None:
        """Give the agent what it should hear now; when it has answered everything, more time may pass."""
        while self._is_ready and (pcm := self.floor.next(self._owed, self._short)) is not None:
            with suppress(Closed):  # why it has ended is on its way
                self._call.send(pcm)
            self._n_sent += len(pcm)
        if self._is_ready and self._device_waits and not self._owed:
            self._device_waits = False
            self.device.proceed()

    @property
    def _owed(self) -> int:
        return max(0, self._n_sent // FRAME_SAMPLES - self._n_answered - self._n_dropped)

    @property
    def _short(self) -> int:
        return self.playout.depth - self.playout.waiting // FRAME_SAMPLES - self._owed

    @property
    def _now(self) -> float:
        return self._n_captured / SAMPLE_RATE

    def _begin(self, opening: Callable[[], Conversation]) -> None:
        self._call = opening()
        self._n_opened += 1
        reader = threading.Thread(target=self._read, args=(self._call.events(), self._n_opened), daemon=True)
        reader.start()

    def _read(self, events: EventStream, n: int) -> None:
        for event in events:
            self.happenings.put((n, event))

    # Sound.

    def _hear(self, piece: Captured) -> None:
        mic = piece.mic
        if not np.isfinite(mic).all():
            mic = np.nan_to_num(mic, nan=0.0, posinf=0.0, neginf=0.0)
            if not self._told_nan:
                self.display.note("the microphone gives samples that are no numbers; they are taken as silence")
                self._told_nan = True
        user = self._echo.clean(mic, piece.far)
        if self._is_ready:
            self.floor.hear(user)
        self._device_waits = True
        self._n_captured += len(mic)
        self._record(piece.far, user)
        self._show(piece.far, user)
        if piece.over:
            self._wind_up(len(mic))

    def _record(self, agent: np.ndarray, user: np.ndarray) -> None:
        if self._recording is not None:
            try:
                self._recording.add(agent, user)
            except OutputError as error:
                self.display.note(str(error))
                self._failed = error

    def _show(self, agent: np.ndarray, user: np.ndarray) -> None:
        while self._due and self._due[0][0] < self._n_captured:
            self._tell(self._due.popleft()[1])
        self._levels = (max(self._levels[0], rms(user)), max(self._levels[1], rms(agent)))
        self._n_unshown += len(agent)
        if self._n_unshown >= FRAME_SAMPLES:
            steps = self.step_ms()
            status = Status(
                self._now,
                *self._levels,
                self._holder,
                steps[-1] if steps else None,
                self.playout.depth,
                self.playout.gaps,
                self._n_dropped + self.playout.shed,
                self._is_ready,
            )
            self.display.show(status)
            self._levels, self._n_unshown = (0.0, 0.0), 0

    def _wind_up(self, n_samples: int) -> None:
        """The recording is over: go on until all was said."""
        if not self._n_after:
            self.floor.release()
        busy = self._agent_speaks or self.floor.holder in (Holder.USER, Holder.AGENT) or not self._is_ready
        self._n_after += n_samples
        self._n_quiet = 0 if busy else self._n_quiet + n_samples
        self._over = self._n_after >= self.tail_seconds * SAMPLE_RATE or self._n_quiet >= QUIET_SECONDS * SAMPLE_RATE

    # The agent.

    def _follow(self, event: Event) -> None:
        match event:
            case Ready():
                self._be_ready(event)
            case Overrun(dropped=dropped, total=total):
                self._n_dropped = total
                self._note("dropped", frames=dropped)
                self._tell_of_drops()
            case Error(error=error):
                self._error, self.settings = error, self._proven
                self.display.note(str(error))
            case Ended(reason=reason):
                told = self._error if reason == "error" else None  # an earlier one did not end it
                raise told or Closed(f"the conversation has ended ({reason})")
            case Degenerate(kind=kind):
                self.display.note(f"the agent's speech has broken down ({kind}); !reset begins anew")
                self._note("degenerate", kind=kind)
            case UserText(text=text, final=True):
                self.display.note(f"you: {text}")
                self._note("user text", text=text)
            case UserText():
                pass
            case UserStarted() | UserStopped():
                if self.floor.holder is Holder.BOTH:
                    self._note("user started" if isinstance(event, UserStarted) else "user stopped")
            case _:
                if isinstance(event, Interrupted) and not self._call.capabilities.full_duplex:
                    self._fall_silent()  # what was made of the answer is dropped, and so is what waits here
                self._n_answered += isinstance(event, Audio)
                for taken in self.floor.take(event):
                    self._play(taken)

    def _tell_of_drops(self) -> None:
        """In words now and then; the display counts them."""
        if self._told_drops_at is None or self._now - self._told_drops_at >= TELL_SECONDS:
            self._told_drops_at = self._now
            self.display.note(f"too slow: {self._n_dropped * FRAME_SECONDS:.1f} s of yours were not heard so far")

    def _be_ready(self, ready: Ready) -> None:
        self._seed, self._proven = ready.seed, self.settings
        if self._is_ready:
            self.display.note(f"another role or voice, and {'all' if ready.kept else 'nothing'} remembered")
        else:
            asked = self.floor.holder is Holder.AGENT
            self.floor.reset(ready.frame)
            if asked:
                self.floor.prompt()
            self.display.note(f"ready (seed {ready.seed})")
        self._note("ready", seed=ready.seed)
        self._is_ready = True

    def _play(self, event: Event) -> None:
        """Send sound to the speaker; what belongs to it is shown when it is audible."""
        if isinstance(event, Audio):
            self.playout.push(event.pcm)
        if event.frame > self._audible[0] or isinstance(event, Audio):
            # The text of a frame comes after its sound, and by then more may have been captured.
            self._audible = (event.frame, self._n_captured + self.playout.ahead)
        if not isinstance(event, Audio):
            self._due.append((self._audible[1], event))
        elif event.measure is not None and self._recording is not None:
            self._recording.step(self._audible[1] / SAMPLE_RATE, event.measure)

    def _tell(self, event: Event) -> None:
        if isinstance(event, AgentText):
            self.display.say(event.text)
            self._note("agent text", text=event.text)
        elif type(event) in _SHOWN:
            self._agent_speaks = isinstance(event, AgentStarted)
            self.display.turn(agent=self._agent_speaks)
            self._note(_SHOWN[type(event)])

    def _watch_the_floor(self) -> None:
        before, self._holder = self._holder, self.floor.holder
        if Holder.USER in (before, self._holder) and before is not self._holder:
            self._note("user started" if self._holder is Holder.USER else "user stopped")
        if self._holder in (Holder.NOBODY, Holder.USER):
            self.playout.drain()

    def _note(self, what: str, **more: str | int) -> None:
        if self._recording is not None:
            self._recording.note(self._now, what, **more)

    # The keyboard.

    def _obey(self, line: str) -> None:
        """Do what was typed. What cannot be done is said, and the conversation goes on."""
        try:
            if not line.strip():
                if self.floor.press():
                    self._fall_silent()
            elif line.lstrip().startswith("!"):
                command = parse_command(line)
                getattr(self, f"_do_{command.name}")(command)
            else:
                self.display.note(f"typed text is not heard; there are {HELP}")
        except PersonaPlexError as error:
            self.display.note(str(error))

    def _do_persona(self, command: Command) -> None:
        role = self.roles.settings(command.argument)
        self._call.update(voice=role.voice, prompt=role.prompt, keep_history=command.keep)
        self._change(voice=role.voice or self.settings.voice, prompt=role.prompt)
        self._note("persona", name=command.argument)

    def _do_voice(self, command: Command) -> None:
        voice = self.roles.find_voice(command.argument)
        self._call.update(voice=voice, keep_history=command.keep)
        self._change(voice=voice, prompt=self.settings.prompt)
        self._note("voice", name=command.argument)

    def _do_say(self, command: Command) -> None:
        self._call.send_text(command.argument)
        self.floor.prompt()
        self._note("say", text=command.argument)

    def _do_stop(self, _: Command) -> None:
        self._call.cancel()
        self._fall_silent()
        self._note("stop")

    def _change(self, **changes: object) -> None:
        self.settings = dataclasses.replace(self.settings, **changes)  # type: ignore[arg-type]
        self.display.note("at the agent's next pause")

    def _do_reset(self, _: Command) -> None:
        self._note("reset")
        self._call.close()
        self._fall_silent()
        self.floor.reset()
        self._is_ready = self._agent_speaks = False
        self._audible = (-1, 0)
        self._n_sent = self._n_answered = self._n_dropped = 0
        self._begin(lambda: self.open(self.settings))

    def _do_save(self, command: Command) -> None:
        save = getattr(self._call, "save", None)
        if save is None:
            raise Unsupported("this backend's conversations cannot be saved")
        path = Path(command.argument or time.strftime("talk-%Y%m%d-%H%M%S.safetensors")).expanduser()
        save(path)
        self.display.note(f"saved {path}; --resume goes on from there")

    def _do_quit(self, _: Command) -> None:
        self._over = True

    def _fall_silent(self) -> None:
        self.playout.clear()
        self._due.clear()

    def _close(self) -> None:
        """End the conversation and keep what was recorded, whatever else goes wrong."""
        self._call.close()
        try:
            self.device.stop()
        finally:
            if self._recording is not None:
                steps = sorted(self.step_ms()) or [0.0]
                self._recording.close(
                    seed=self._seed,
                    dropped_frames=self._n_dropped,
                    shed_frames=self.playout.shed,
                    gaps=self.playout.gaps,
                    step_ms_p50=round(steps[len(steps) // 2], 2),
                    step_ms_p99=round(steps[int(0.99 * (len(steps) - 1))], 2),
                )
