"""How a server is to run: one frozen value, checked once, made by the command line or a test."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from personaplex.errors import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8998
"""The port of the whole family: Moshi's, and NVIDIA's."""


@dataclass(frozen=True)
class ServerSettings:
    """Raises UsageError for what contradicts itself, and for an open door that nobody spelled out.

    `token`: what callers must show; `no_auth`: none is asked for, wherever the server listens. `origins`: pages of
    other hosts that may call (scheme://host[:port], or * for all). `certificate`, `key`: files, for TLS. `history`: an
    SQLite file or a SQLAlchemy URL; None keeps everything in memory. `busy_seconds`: how long a caller of `/api/chat`
    who finds all slots taken is kept until they are told so. `drain_seconds`: how long running conversations may go on
    after SIGTERM. `resume_seconds`: how long a conversation waits for a caller whose connection broke.
    `silent_seconds`: a connection from which nothing comes for so long, not even an answer to a ping, is dead.
    `idle_seconds`: a caller who lives, but sends nothing for so long, is let go. `unsent_seconds`: how long a slow
    reader may keep a message waiting. `most_message_bytes`: of one WebSocket message; `most_upload_bytes`: of one HTTP
    request.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = None
    no_auth: bool = False
    origins: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    persona: str = "assistant"
    history: str | None = None
    retention_days: float | None = None
    busy_seconds: float = 1.0
    drain_seconds: float = 30.0
    resume_seconds: float = 30.0
    silent_seconds: float = 20.0
    idle_seconds: float = 300.0
    unsent_seconds: float = 10.0
    most_message_bytes: int = 1 << 20
    most_upload_bytes: int = 100 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"port is {self.port}; it must be from 0 (any that is free) to 65535")
        if self.token is not None and (len(self.token) < 8 or not self.token.isascii() or not self.token.isprintable()):
            raise UsageError("the token must be 8 or more printable ASCII characters")
        if self.token is not None and any(character in self.token for character in ' ,;"\\'):
            raise UsageError("the token travels in headers: no spaces, commas, semicolons, quotes or backslashes in it")
        if self.token is not None and self.no_auth:
            raise UsageError("a token and --no-auth contradict each other")
        if not self.is_local and self.token is None and not self.no_auth:
            raise UsageError(
                f"listening on {self.host} lets other machines in: set a token (--token, or PERSONAPLEX_TOKEN), "
                "or say --no-auth if anybody may call"
            )
        if (self.certificate is None) != (self.key is None):
            raise UsageError("TLS needs a certificate and its key")
        for origin in self.origins:
            parts = urlsplit(origin)
            if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path):
                raise UsageError(f"origin {origin!r}: expected scheme://host[:port] without a path, or *")
        for name in (
            "busy_seconds",
            "drain_seconds",
            "resume_seconds",
            "silent_seconds",
            "idle_seconds",
            "unsent_seconds",
        ):
            if not 0 <= getattr(self, name) < 1e6:
                raise UsageError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be 0 or more")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def scheme(self) -> str:
        """What its address begins with: http or https."""
        return "http" if self.certificate is None else "https"
