"""Model files that engines are given: a path, or a name in the folder where they are kept."""

from __future__ import annotations

import os
from pathlib import Path

from personaplex.errors import EngineError


def model_folder() -> Path:
    """Where named models are looked for: PERSONAPLEX_MODELS, or a folder below XDG_DATA_HOME (~/.local/share)."""
    if chosen := os.environ.get("PERSONAPLEX_MODELS"):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "personaplex" / "models"


def find_model(model: str, suffix: str, where_from: str) -> Path:
    """The file that `model` names: a path, or a name, with or without its suffix, here or in `model_folder`.

    Raises EngineError saying `where_from` it comes.
    """
    given = Path(os.path.expanduser(model))  # noqa: PTH111 - Path's own raises for a user that does not exist
    named = given if given.suffix == suffix else Path(f"{given}{suffix}")
    for path in (given, named, model_folder() / named):
        if path.is_file():
            return path
    raise EngineError(f"there is no file {named}, here or in {model_folder()}; {where_from}")
