"""What a server talks with, as a value: made by `opening.py` or by a test, held by `service.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from personaplex.conversation import Backend
from personaplex.persona import Parts

Mode = Literal["duplex", "cascade"]

Sampling = Mapping[str, float | int | bool]


def _unchanged(name: str) -> str:
    return name


@dataclass(frozen=True)
class Backends:
    """What a server talks with, once it is loaded.

    `slots`: of each mode. `voices`: names of the duplex model's voices, with the user's own; `find_voice` makes one of
    these names what the backend opens. `cascade_voices`: the synthesiser's. `takes_prompts`: False for Moshi, whose
    voice and role cannot be set. `role_tokens` counts those of a role text, of the `context_frames` that the model
    remembers; None where nobody counts. `sampling`: the duplex model's own. `parts`: what goes before the personas'
    choices of engines. `watch` has a function called with the seconds of each step; `unheard` tells frames that wait,
    for each conversation. `close` closes all.
    """

    model_name: str
    duplex: Backend | None = None
    cascade: Backend | None = None
    slots: Mapping[Mode, int] = field(default_factory=dict)
    voices: Callable[[], Sequence[str]] = tuple
    cascade_voices: Callable[[], Sequence[str]] = tuple
    find_voice: Callable[[str], str] = _unchanged
    takes_prompts: bool = True
    role_tokens: Callable[[str], int] | None = None
    context_frames: int = 0
    sampling: Sampling = field(default_factory=dict)
    parts: Parts = field(default_factory=Parts)
    watch: Callable[[Callable[[float], None]], None] = lambda _: None
    unheard: Callable[[], Sequence[int]] = tuple
    close: Callable[[], None] = lambda: None

    def of(self, mode: Mode) -> Backend | None:
        """The backend of a mode, if there is one."""
        return self.duplex if mode == "duplex" else self.cascade
