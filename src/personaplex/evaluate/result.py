"""What an evaluation leaves: its rows, what it was run on and with, and what it could not measure. One JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from personaplex import __version__
from personaplex.errors import PersonaPlexError, UsageError
from personaplex.evaluate.row import Row, as_json, from_json
from personaplex.files import whole_file


@dataclass(frozen=True)
class Failure:
    """One item that could not be measured, and why in words: it stays in the denominators."""

    item: str
    reason: str


@dataclass(frozen=True)
class Result:
    """Of one evaluation: `kind` is its command (`duplex`, `codec`, ...), `about` what it was run on and with.

    `about` holds whatever makes a number comparable: model, seed, machine, options. `items` are JSON objects, one for
    each thing measured, so that a number can be traced to what it was counted from. An item whose name is its `item`
    and whose `values` hold, by the `what` of a row, the list of numbers it adds to that row's mean or median can be
    compared pair by pair with the item of that name in another result (`report --compare`). `error` is there if nothing
    at all could be measured, and says so: what was tried is worth keeping all the same. It is not in the file.
    """

    kind: str
    about: Mapping[str, Any]
    rows: Sequence[Row]
    items: Sequence[Mapping[str, Any]] = ()
    failures: Sequence[Failure] = field(default=())
    error: PersonaPlexError | None = field(default=None, compare=False)

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all. Raises OutputError."""
        entry = {
            "kind": self.kind,
            "personaplex": __version__,
            "about": dict(self.about),
            "rows": as_json(self.rows),
            "items": [dict(item) for item in self.items],
            "failures": [{"item": failure.item, "reason": failure.reason} for failure in self.failures],
        }
        with whole_file(path) as temporary:
            text = json.dumps(_finite(entry), indent=1, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Result:
        """What `save` wrote. Raises UsageError for any other file."""
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                entry["kind"],
                entry["about"],
                from_json(entry["rows"]),
                entry["items"],
                [Failure(**failure) for failure in entry["failures"]],
            )
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{path} is not the result of an evaluation; make one with `personaplex eval`") from error


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: None stands for both."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
