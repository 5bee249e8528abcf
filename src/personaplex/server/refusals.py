"""What an error is to a caller: an HTTP status, a WebSocket close code and a body, in one table.

The body has OpenAI's shape: `{"error": {"type", "code", "message", "param"}}`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from personaplex.errors import (
    AudioError,
    Busy,
    Closed,
    ConversationError,
    EngineError,
    PersonaError,
    PersonaPlexError,
    SynthesisError,
    Unavailable,
    Unsupported,
    UsageError,
)


class Missing(UsageError):  # noqa: N818 - a state of affairs more than a mistake
    """Something that a caller named and that is not there: a session, a model."""


class TooLarge(UsageError):  # noqa: N818
    """More than a caller may send at once."""


class Refusal(NamedTuple):
    """How one kind of error is told. Close codes are RFC 6455's and IANA's, which every client knows."""

    status: int
    close_code: int
    type: str
    code: str


OURS = Refusal(500, 1011, "server_error", "internal_error")
"""What is our mistake, or the model's."""

REFUSALS: dict[type[PersonaPlexError], Refusal] = {
    Busy: Refusal(429, 1013, "rate_limit_error", "resource_exhausted"),
    Unavailable: Refusal(503, 1013, "server_error", "unavailable"),
    ConversationError: Refusal(409, 1008, "invalid_request_error", "conversation_in_use"),
    Closed: Refusal(409, 1000, "invalid_request_error", "conversation_ended"),
    Unsupported: Refusal(400, 1008, "invalid_request_error", "unsupported"),
    UsageError: Refusal(400, 1008, "invalid_request_error", "invalid_value"),
    Missing: Refusal(404, 1008, "invalid_request_error", "not_found"),
    TooLarge: Refusal(413, 1009, "invalid_request_error", "too_large"),
    PersonaError: Refusal(400, 1008, "invalid_request_error", "unknown_persona_or_voice"),
    AudioError: Refusal(400, 1007, "invalid_request_error", "unusable_audio"),
    EngineError: Refusal(502, 1011, "server_error", "engine_failed"),
    SynthesisError: Refusal(502, 1011, "server_error", "synthesis_failed"),
}
"""The nearest class of an error's own decides."""

RETRY_SECONDS = 5
"""What a caller who found all slots taken is told to wait (`Retry-After`)."""


def refusal(error: BaseException) -> Refusal:
    """How `error` is told."""
    return next((REFUSALS[kind] for kind in type(error).__mro__ if kind in REFUSALS), OURS)


def message(error: BaseException) -> str:
    """What a caller may read of it: an error's own line if it was raised on purpose, else nothing of our insides."""
    if isinstance(error, PersonaPlexError):
        return " ".join(str(error).split())
    return "something went wrong on the server; its log says what"


def body(error: BaseException, param: str | None = None) -> dict[str, Any]:
    """The JSON that tells it."""
    how = refusal(error)
    return {"error": {"type": how.type, "code": how.code, "message": message(error), "param": param}}


def close_reason(error: BaseException) -> str:
    """The same for a close frame, which holds at most 123 bytes of UTF-8."""
    return message(error).encode()[:123].decode(errors="ignore")
