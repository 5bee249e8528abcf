"""The log: one line an event, whatever is in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from io import StringIO

import pytest

from personaplex.server import log
from personaplex.server.log import tell


@pytest.fixture
def written() -> StringIO:
    return StringIO()


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest, written: StringIO) -> Iterator[log.Format]:
    before = {name: logging.getLogger(name).level for name in log.LOGGERS}
    handler = log.set_up(request.param)
    handler.setStream(written)
    yield request.param
    for name, level in before.items():
        logger = logging.getLogger(name)
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


def test_an_event_is_a_line(form: log.Format, written: StringIO) -> None:
    tell("session opened", session=3, client="moshi")
    (line,) = written.getvalue().splitlines()
    if form == "json":
        found = json.loads(line)
        assert datetime.fromisoformat(found.pop("time")).tzinfo is not None
        assert found == {"level": "info", "event": "session opened", "session": 3, "client": "moshi"}
    else:
        assert line.split(" ", 1)[1] == "info session opened session=3 client=moshi"


def test_nobody_begins_a_line_of_their_own(form: log.Format, written: StringIO) -> None:
    tell("refused", path="/a\n2026-01-01 info all is well\x1b[31m")
    err = written.getvalue()
    assert err.count("\n") == 1 and "\x1b" not in err


def test_an_error_brings_its_traceback(form: log.Format, written: StringIO) -> None:
    try:
        raise ValueError("inside")
    except ValueError as error:
        tell("call failed", error=error)
    err = written.getvalue()
    assert "ValueError: inside" in err and "test_log.py" in err
    assert (err.count("\n") == 1) == (form == "json")


def test_addresses_that_uvicorn_would_log_are_not(form: log.Format, written: StringIO) -> None:
    """They hold tokens and roles."""
    logging.getLogger("uvicorn.error").info('127.0.0.1 - "WebSocket /api/chat?token=abc" [accepted]')
    assert not written.getvalue()
    logging.getLogger("uvicorn.error").error("something is wrong")
    assert "something is wrong" in written.getvalue()
