"""Which pages may call a server. A browser sends any page's WebSocket anywhere, and says only where the page is from.

Programs send no Origin, and are asked for the token alone. A page of the server's own is known by the host it was
fetched from. On a loopback address without a token that host must be a loopback name, too: else a foreign page could
give its own name this machine's address ("DNS rebinding"), and be the server's own.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from personaplex.server.settings import ServerSettings

_LOCAL = {"localhost", "127.0.0.1", "::1"}


class Origins:
    """What `settings` allow."""

    def __init__(self, settings: ServerSettings) -> None:
        self._allowed = {origin.lower() for origin in settings.origins}
        self._hosts = _LOCAL | {settings.host.strip("[]").lower()}
        self._hosts |= {urlsplit(origin).hostname or "" for origin in self._allowed if origin != "*"}
        self._any_host = not settings.is_local or settings.token is not None

    def objection(self, origin: str | None, host: str) -> str | None:
        """Why a call with these headers is refused; None if it is not."""
        if not self._any_host and _name(host) not in self._hosts:
            return f"this server is not called {_name(host)[:80]!r}; --origin names the page that may call it so"
        if origin is None or "*" in self._allowed or origin.lower() in self._allowed:
            return None
        parts = _split(origin)
        if parts is not None and parts.lower() == host.lower():
            return None
        return f"pages of {origin[:80]!r} may not call this server; --origin allows one"


def _split(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") and parts.netloc else None


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
