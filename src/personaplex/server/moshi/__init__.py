"""`GET /api/chat`: Moshi's and PersonaPlex's protocol, as its clients know it. Ogg-Opus over a WebSocket."""

from personaplex.server.moshi.routes import router

__all__ = ["router"]
