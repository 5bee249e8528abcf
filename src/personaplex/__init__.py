"""PersonaPlex in Python on MLX: full-duplex speech with a computer, on your own machine."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

from personaplex.accelerator import IMPORTED_TOO_EARLY, blas, explain

if TYPE_CHECKING:
    from personaplex.conversation import Settings
    from personaplex.engine.sampling import Sampling
    from personaplex.errors import PersonaPlexError
    from personaplex.model import PersonaPlex
    from personaplex.reply import AgentFrame, Chunk, Reply, Timings
    from personaplex.runtime.engine import Engine
    from personaplex.runtime.limits import Limits
    from personaplex.voice import Voice

__version__ = "0.1.0"

_HOMES = {
    "PersonaPlex": "model",
    "Reply": "reply",
    "Chunk": "reply",
    "AgentFrame": "reply",
    "Timings": "reply",
    "Sampling": "engine.sampling",
    "Voice": "voice",
    "PersonaPlexError": "errors",
    "Engine": "runtime.engine",
    "Limits": "runtime.limits",
    "Settings": "conversation",
}
__all__ = [
    "AgentFrame",
    "Chunk",
    "Engine",
    "Limits",
    "PersonaPlex",
    "PersonaPlexError",
    "Reply",
    "Sampling",
    "Settings",
    "Timings",
    "Voice",
    "__version__",
]

if blas.advice == IMPORTED_TOO_EARLY:
    warnings.warn(IMPORTED_TOO_EARLY, RuntimeWarning, stacklevel=2)


def __getattr__(name: str) -> object:
    """Import public names when they are first used: `import personaplex` alone loads no MLX."""
    if name not in _HOMES:
        raise AttributeError(f"module 'personaplex' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"personaplex.{_HOMES[name]}"), name)
    except ImportError as error:
        raise explain(error) from error
