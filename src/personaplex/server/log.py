"""The server's log: one line an event, as JSON or as text. What people say never gets into it, nor a token."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

Format = Literal["text", "json"]

LOGGERS = ("personaplex", "uvicorn.error")
"""Whose lines are shown."""

_log = logging.getLogger("personaplex.server")


def tell(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: object) -> None:
    """Log that `event` happened, with `fields`, and the traceback of `error` where one is given."""
    _log.log(level, event, exc_info=error, extra={"fields": fields})


class Lines(logging.Formatter):
    """`time level event name=value ...`, or the same as a JSON object."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None
        if self._form == "json":
            about = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
            return json.dumps(about if trace is None else about | {"traceback": trace}, default=str)
        words = [time, record.levelname.lower(), _one_line(record.getMessage())]
        words += [f"{name}={_one_line(value)}" for name, value in fields.items()]
        return " ".join(words) if trace is None else " ".join(words) + "\n" + trace


def _one_line(value: object) -> str:
    """A caller's words cannot begin a line of their own."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def set_up(form: Format, *, quiet: bool = False) -> logging.StreamHandler[TextIO]:
    """Send what this package and uvicorn log to stderr; returns the handler, for whoever wants it off again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(form))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet or name != "personaplex" else logging.INFO)
        logger.propagate = False
    return handler
