"""What the history holds: sessions, and the turns in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["chat", "realtime", "moshi", "respond"]
Speaker: TypeAlias = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What `role` said, at a time in seconds since 1970; `persona` is who the agent was then."""

    at: float
    role: Speaker
    text: str
    persona: str | None = None


@dataclass(frozen=True)
class Session:
    """A conversation. Times are seconds since 1970, `recorded` seconds of sound that can be fetched."""

    id: str
    kind: Kind
    persona: str | None
    title: str | None
    created: float
    updated: float
    n_turns: int = 0
    recorded: float = 0.0
