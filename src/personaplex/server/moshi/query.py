"""What a client asks for in the address: `/api/chat?voice_prompt=NATF2.pt&text_prompt=...&seed=...`.

The reference's web client sends more than its server reads; what is not here (pad_mult, text_seed, audio_seed,
repetition_penalty_context, worker_auth_id, email) is ignored, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.datastructures import QueryParams

from personaplex.conversation import Settings
from personaplex.errors import UsageError
from personaplex.server.service import Service

SAMPLING: dict[str, tuple[str, Callable[[str], float | int]]] = {
    "text_temperature": ("text_temperature", float),
    "text_topk": ("text_top_k", int),
    "audio_temperature": ("audio_temperature", float),
    "audio_topk": ("audio_top_k", int),
    "repetition_penalty": ("repetition_penalty", float),
}
"""The protocol's names, ours, and what they are."""

_NO_SEED = -1


def read_query(query: QueryParams, service: Service) -> Settings:
    """How the conversation starts. A parameter that is missing is the default persona's; an empty prompt is none.

    Raises PersonaError for an unknown voice, UsageError for what is no number or out of range.
    """
    from personaplex.engine.sampling import check_seed

    sampling = {
        ours: _number(query, name, kind) for name, (ours, kind) in SAMPLING.items() if _first(query, name) is not None
    }
    seed = None if _first(query, "seed") is None else int(_number(query, "seed", int))
    if seed == _NO_SEED:
        seed = None
    if seed is not None:
        check_seed(seed)
    return service.choose(
        voice=_first(query, "voice_prompt"), prompt=_first(query, "text_prompt"), seed=seed, sampling=sampling
    )


def _first(query: QueryParams, name: str) -> str | None:
    """Of several values the first counts, as in the reference."""
    values: Sequence[str] = query.getlist(name)
    return values[0] if values else None


def _number(query: QueryParams, name: str, kind: Callable[[str], float | int]) -> float | int:
    value = _first(query, name) or ""
    try:
        return kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} is {value[:80]!r}; expected {wanted}") from None
