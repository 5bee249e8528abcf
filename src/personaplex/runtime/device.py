"""The model and the state of all slots: what only the device thread touches. No threads and no locks in here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.checkpoint.states import read_state, write_state
from personaplex.conversation import Settings
from personaplex.engine.duplex import Duplex, DuplexState, read
from personaplex.engine.generator import Generator, GeneratorState, Prefix
from personaplex.engine.prompt import Prompt
from personaplex.engine.readout import Readout
from personaplex.engine.sampling import Ceiling, Sampling, session_key
from personaplex.errors import CheckpointError
from personaplex.model import PersonaPlex
from personaplex.models.streams import N_STREAMS, UNGENERATED
from personaplex.nn.sinks import sinks_form
from personaplex.nn.state import arrays, copied, extract, insert, repeated, set_back, trim, without_rings
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import available_bytes, plan
from personaplex.runtime.prefix import PrefixCache
from personaplex.runtime.seat import Heard
from personaplex.steps import StepMeasure
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS
from personaplex.voice import Voice

Source = str | Path | PersonaPlex | Callable[[], PersonaPlex]
"""What `PersonaPlex.from_pretrained` takes, a model, or a function that makes one."""

READ_COLUMNS = {"cpu": 64, "gpu": 256}
"""Columns of a new prompt per turn of the loop, by device: others' frames go in between. So many as take less than half
of a frame's 80 ms (`bench prefill`): on a GPU every prompt that can be pinned is one call.
"""

CLIP_FRAMES = 8
"""Frames of a recorded voice likewise: the codec is the slower part where it has no GPU."""

SNAPSHOT = "snapshot"
"""The kind of file that holds a running conversation."""

TIMED_STEPS = 4096
"""How many step times are remembered."""


class Device:
    """A loaded model and `slots` rows of state."""

    def __init__(self, source: Source, slots: int, limits: Limits) -> None:
        self.model = source if isinstance(source, PersonaPlex) else _load(source, slots, limits)
        self.slots = slots
        self.step_ms: deque[float] = deque(maxlen=TIMED_STEPS)
        self.watch: Callable[[float], None] = lambda _: None
        self._spare = limits.spare_frames
        pins, lm = limits.pinned_frames, self.model.lm
        bits = limits.kv_bits
        self._generator = Generator(lm, self.model.config, pins=pins, spare_frames=self._spare, kv_bits=bits)
        self._base = Ceiling.over(self.model.sampling())
        self._machines: dict[Ceiling, Duplex] = {}
        self._voices: dict[str, Voice] = {}
        temporal = self._empty().generator.temporal
        rows = temporal.rings[0].k.shape[2]
        self.identity = f"{self.model.folder.fingerprint} {lm.dtype} {rows} rows {pins} pinned" + (
            f" {bits} kv bits" if bits != 16 else ""
        )
        z, column = mx.zeros((1, lm.config.dim), lm.dtype), mx.zeros((1, N_STREAMS), mx.int32)
        form = Prefix(temporal, z, column, column)
        self.prefixes = PrefixCache(
            self.identity, form, limits.prefix_bytes, limits.prefix_folder, limits.prefix_folder_bytes
        )
        self._state = repeated(self._empty(), slots)
        self._generator.prepare(self._state.generator)
        self._fresh = trim(self._empty(to_place=True))
        mx.eval(arrays(self._fresh))
        self._may_follow = True
        # Slots whose rings hold numbers alone, wherever they were ever written.
        self._finite = set(range(slots))

    def compose(self, settings: Settings) -> Prompt:
        """Voice and role as a prompt: None is the default, an empty one is none."""
        voice = self._default_voice if settings.voice is None else settings.voice or None
        prompt = self.model.default_prompt if settings.prompt is None else settings.prompt
        composed = self.model.compose(self._voice(voice), prompt if prompt or voice else None)
        self._generator.check(composed)  # before anything is to be changed for it
        return composed

    def encoding(self, path: Path, pcm: np.ndarray) -> Iterator[Voice | None]:
        """The voice in a recording, read piece by piece: None until it is read."""
        pieces = []
        for codes in self.model.mimi.encoding(mx.array(pcm)[None], CLIP_FRAMES):
            pieces.append(np.array(codes[0]).T)
            yield None
        yield Voice(path.stem, codes=np.concatenate(pieces))

    @cached_property
    def _default_voice(self) -> str | None:
        return self.model.default_voice

    @cached_property
    def _own_voices(self) -> frozenset[str]:
        return frozenset(self.model.list_voices())

    def _voice(self, choice: str | Path | Voice | None) -> str | Path | Voice | None:
        """A voice of the model's own is read from its archive once; a file is read again, for it may have changed."""
        if not isinstance(choice, str) or choice not in self._own_voices or Path(choice).is_file():
            return choice
        if choice not in self._voices:
            self._voices[choice] = self.model.load_voice(choice)
        return self._voices[choice]

    def reading(self, prompt: Prompt) -> Iterator[Prefix | None]:
        """The prefix of `prompt`, read piece by piece: None until it is read, and for an empty prompt."""
        for prefix in self._generator.reading(prompt, _read_columns()):
            if prefix is not None:
                prefix = trim(prefix)
                mx.eval(arrays(prefix))  # another thread writes it
            yield prefix

    def reading_inside(self, slot: int, prompt: Prompt, sampling: Sampling) -> Iterator[None]:
        """Read `prompt` inside the conversation in `slot`, piece by piece; it must not be stepped meanwhile."""
        # Its pinned prompt may be due to follow, and may have done so: when a neighbour was stepped.
        inside = self._generator.follow(copied(self._state.generator, slot))
        for prefix in self._generator.reading(prompt, _read_columns(), inside):
            if prefix is not None:
                self._finite.discard(slot)
                self._may_follow = True
                generated = insert(self._state.generator, slot, self._generator.go_on(prefix, inside, sampling))
                self._state = self._state._replace(generator=generated)
                mx.eval(arrays(generated))
            yield

    def begin(self, slot: int, prefix: Prefix | None, seed: int, sampling: Sampling) -> None:
        """Put a new conversation into `slot`."""
        _, generated = self._generator.begin(prefix, seed=seed, sampling=sampling, to_place=True)
        # It is drawn while the rest is prepared.
        mx.async_eval(generated.column, generated.recent)  # type: ignore[no-untyped-call]
        self._place(slot, self._fresh._replace(generator=generated))

    def go_on(self, slot: int, state: DuplexState, sampling: Sampling) -> None:
        """Put a state that was captured into `slot`."""
        self._place(slot, state._replace(generator=state.generator._replace(sampling=sampling.row())))

    def _place(self, slot: int, state: DuplexState) -> None:
        # What an earlier conversation left further on is masked, and then only what is no number would be noticed.
        self._state = insert(self._state, slot, state, clear=slot not in self._finite, apart=True)
        self._finite.discard(slot)  # who knows what it read; a step that comes out finite tells
        self._may_follow = True
        mx.eval(self._state)

    def step(
        self, frames: Mapping[int, np.ndarray], forced: Mapping[int, np.ndarray], open_now: Iterable[Sampling]
    ) -> dict[int, Heard]:
        """One step of the model for the slots that have a frame [1920].

        `forced` are tokens [17] of the next column of some of them; `open_now` are the choices of all slots.
        """
        began = time.perf_counter()
        pcm, active = np.zeros((self.slots, FRAME_SAMPLES), np.float32), np.zeros(self.slots, bool)
        tokens = np.full((self.slots, N_STREAMS), UNGENERATED, np.int32)
        for slot, heard in frames.items():
            pcm[slot], active[slot] = heard, True
            tokens[slot] = forced.get(slot, UNGENERATED)
        machine, given = self._machine(open_now), (mx.array(active), mx.array(tokens))
        frame, self._state = machine.step(mx.array(pcm), self._state, *given, follow=self._may_follow)
        read_out = read(frame, self._state)
        self._may_follow = read_out.must_follow(self.model.config.lm.context)
        seconds = time.perf_counter() - began
        self.step_ms.append(1000 * seconds)
        self.watch(seconds)
        results = {s: self._heard(s, read_out, seconds) for s in frames}
        self._finite |= {s for s, one in results.items() if one.is_finite}
        self._finite -= {s for s, one in results.items() if not one.is_finite}
        return results

    @staticmethod
    def _heard(slot: int, read_out: Readout, seconds: float) -> Heard:
        entropies = read_out.entropies[slot]
        return Heard(
            read_out.pcm[slot].copy(),
            read_out.tokens[slot],
            bool(read_out.valid[slot]),
            float(entropies[1:] @ [1 / N_CODEBOOKS, 1 - 1 / N_CODEBOOKS]),
            bool(read_out.hears[slot]),
            StepMeasure(1000 * seconds, *map(float, entropies)),
        )

    def mark(self) -> list[mx.array]:
        """Where all slots are now, for `set_back`."""
        return without_rings(self._state)

    def set_back(self, slot: int, mark: list[mx.array], seed: int | None) -> None:
        """Make `slot` what it was at `mark`; with a `seed`, it will draw anew."""
        state = set_back(self._state, slot, mark)
        if seed is not None:
            key = mx.slice_update(state.generator.key, session_key(seed), mx.array([slot]), axes=(0,))
            state = state._replace(generator=state.generator._replace(key=key))
        self._state, self._may_follow = state, True

    def capture(self, slot: int) -> DuplexState:
        """A copy of what `slot` holds."""
        state = trim(extract(self._state, slot))
        mx.eval(arrays(state))
        return state

    def write(self, path: Path, state: DuplexState, notes: dict[str, Any]) -> None:
        """Write what was captured, with `notes` about it: for another thread. Raises OutputError."""
        write_state(path, SNAPSHOT, self.identity, state, notes)

    def read(self, path: Path) -> tuple[DuplexState, dict[str, Any]]:
        """The state and notes that `write` wrote: for another thread. Raises CheckpointError."""
        empty, pins, dtype = self._empty(), self._generator.pins, self.model.lm.dtype
        form = empty.holding(sinks_form(empty.generator.temporal.rings, pins, dtype).prompts)
        state, notes = read_state(path, SNAPSHOT, self.identity, form)
        self._check(path, state.generator)
        return state, notes

    def _check(self, path: Path, state: GeneratorState) -> None:
        """What a state uses to look something up must be in range: a lookup does not ask."""
        config = self.model.config.lm
        most = np.array([config.text_card] + [config.card] * (N_STREAMS - 1))
        column, recent = np.array(state.column), np.array(state.recent)
        pinned, position = cast(int, state.pinned.item()), cast(int, state.temporal.position.item())
        # One past a vocabulary stands for its beginning; -1 for no token yet.
        sound = ((column >= UNGENERATED) & (column <= most)).all()
        sound &= ((recent >= -1) & (recent <= most[: recent.shape[-1]])).all()
        held = min((prompt.n_rows for prompt in state.sinks.prompts), default=self._generator.pins)
        if not sound or not 0 <= pinned <= max(min(self._generator.pins, position) - 1, 0) or pinned > held:
            raise CheckpointError(f"{path} is damaged: it holds tokens or positions that this model does not have")

    def _empty(self, *, to_place: bool = False) -> DuplexState:
        """A one-slot state before anything, not evaluated: a form to compare with, or to fill a slot."""
        mimi = self.model.mimi
        _, generated = self._generator.begin(None, to_place=to_place)
        return DuplexState(mimi.init_encoder(1, self._spare), generated, mimi.init_decoder(1, self._spare))

    def _machine(self, choices: Iterable[Sampling]) -> Duplex:
        """A step that serves all these choices. It bounds work, not results: nobody hears it change."""
        ceiling = self._base.raised(*choices)
        if ceiling not in self._machines:
            self._machines[ceiling] = Duplex(self.model.mimi, self._generator, ceiling, compiled=self.model.compiled)
        return self._machines[ceiling]


def _read_columns() -> int:
    return READ_COLUMNS["gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"]


def _load(source: str | Path | Callable[[], PersonaPlex], slots: int, limits: Limits) -> PersonaPlex:
    """Load a model if it and its slots fit."""
    if callable(source):
        return source()
    folder, available = ModelFolder(resolve(source), limits.context_seconds), available_bytes()
    if available is not None:
        plan(folder, slots, limits).check(available)
    return PersonaPlex.from_pretrained(source, context_seconds=limits.context_seconds)
