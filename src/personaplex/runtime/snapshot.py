"""What a snapshot says of a conversation beside the model's state: written as JSON, and not trusted when it is read."""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from personaplex.audio import as_chunk
from personaplex.conversation import PromptChoice, Settings
from personaplex.engine.sampling import Sampling, check_seed
from personaplex.errors import AudioError, CheckpointError, UsageError
from personaplex.models.streams import UNGENERATED
from personaplex.runtime.limits import MOST_FORCED
from personaplex.runtime.seat import Forced, Seat
from personaplex.turns import QUIET_FRAMES, Turn
from personaplex.voice import Voice

Kind = TypeVar("Kind")

_MOST_FRAMES = 1 << 53
_LONGEST_CHARACTER = 4
_MOST_FORCED = MOST_FORCED + QUIET_FRAMES


@dataclass(frozen=True)
class Notes:
    """A seat's own half of a snapshot: `text` are bytes of a character that is not whole, `unheard` samples [S]."""

    settings: Settings
    seed: int
    sampling: Sampling
    n_frames: int
    n_dropped: int
    text: bytes
    agent: Turn
    forced: tuple[Forced, ...]
    unheard: np.ndarray

    @classmethod
    def of(cls, seat: Seat) -> Notes:
        """What is to be kept of a seat."""
        return cls(
            settings=seat.settings,
            seed=seat.seed,
            sampling=seat.sampling,
            n_frames=seat.n_frames,
            n_dropped=seat.n_dropped,
            text=seat.text.held,
            agent=seat.agent,
            forced=(seat.forced[1], *seat.script),
            unheard=seat.unheard,
        )

    def to_json(self) -> dict[str, Any]:
        """The same, for JSON."""
        voice, prompt = self.settings.voice, self.settings.prompt
        return {
            "voice": voice.name if isinstance(voice, Voice) else None if voice is None else str(voice),
            "prompt": prompt if prompt is None or isinstance(prompt, str) else [int(token) for token in prompt],
            "seed": self.seed,
            "sampling": dataclasses.asdict(self.sampling),
            "n_frames": self.n_frames,
            "n_dropped": self.n_dropped,
            "text": self.text.hex(),
            "agent": list(self.agent),
            "forced": [list(frame) for frame in self.forced],
            "unheard": base64.b64encode(self.unheard.astype("<f4").tobytes()).decode(),
        }

    @classmethod
    def read(cls, notes: dict[str, Any], where: str) -> Notes:
        """What `to_json` wrote. Raises CheckpointError, naming the file, for anything that it would not have."""
        try:
            return cls._read(notes)
        except (KeyError, TypeError, ValueError, AudioError, UsageError) as error:
            raise CheckpointError(f"{where} is damaged: its notes cannot be used ({error})") from error

    @classmethod
    def _read(cls, notes: dict[str, Any]) -> Notes:
        seed, sampling = _typed(notes["seed"], int), Sampling(**_typed(notes["sampling"], dict))
        check_seed(seed)
        voice, text = notes["voice"], bytes.fromhex(notes["text"])
        speaking, quiet = notes["agent"]
        forced = tuple(_forced(*_typed(frame, list)) for frame in _typed(notes["forced"], list))
        if not 1 <= len(forced) <= _MOST_FORCED:
            raise ValueError(f"{len(forced)} frames to come")
        if len(text) > _LONGEST_CHARACTER:
            raise ValueError(f"a character of {len(text)} bytes")
        return cls(
            settings=Settings(None if voice is None else _typed(voice, str), _prompt(notes["prompt"]), seed, sampling),
            seed=seed,
            sampling=sampling,
            n_frames=_count(notes["n_frames"]),
            n_dropped=_count(notes["n_dropped"]),
            text=text,
            agent=Turn(_typed(speaking, bool), _count(quiet)),
            forced=forced,
            unheard=as_chunk(np.frombuffer(base64.b64decode(notes["unheard"], validate=True), "<f4")),
        )


def _typed(value: object, kind: type[Kind]) -> Kind:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def _count(value: object) -> int:
    number = _typed(value, int)
    if not 0 <= number < _MOST_FRAMES:
        raise ValueError(f"{number} frames")
    return number


def _forced(token: object, silent: object) -> Forced:
    return Forced(UNGENERATED if token == UNGENERATED else _count(token), _typed(silent, bool))


def _prompt(value: object) -> PromptChoice:
    if isinstance(value, list):
        return [_count(token) for token in value]
    return None if value is None else _typed(value, str)
