"""The words of a recording and their times, in a file of the benchmark's form."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from personaplex.cascade.engine import TimedWord
from personaplex.errors import UsageError
from personaplex.files import whole_file


def read_words(path: Path) -> list[TimedWord]:
    """The words of an `output.json`: `{"text", "chunks": [{"text", "timestamp": [start, end]}]}`, seconds.

    A word without a start is left out; one without an end takes no time, as in the benchmark's scripts. Raises
    UsageError for another file.
    """
    chunks = read_json(path)
    try:
        rows = [(str(chunk["text"]), *chunk["timestamp"]) for chunk in chunks["chunks"]]
        words = [
            TimedWord(text, start, start if end is None else end) for text, start, end in rows if start is not None
        ]
        if not all(math.isfinite(word.start) and math.isfinite(word.end) for word in words):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f'{path} holds no words with times; expected {{"chunks": [{{"text": ..., "timestamp": [start, end]}}]}}'
        ) from error
    return words


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises UsageError when it is missing or is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON") from error


def write_words(path: Path, words: Sequence[TimedWord], **more: str) -> None:
    """Write what `read_words` reads, and `more` beside it. Raises OutputError."""
    chunks = [{"text": word.text, "timestamp": [round(word.start, 3), round(word.end, 3)]} for word in words]
    entry = {**more, "text": " ".join(word.text for word in words), "chunks": chunks}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
