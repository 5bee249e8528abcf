"""What `bench serve` makes of what its callers saw; that it calls a real server is tests/e2e/test_bench_serve.py."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from personaplex.bench.report import Row
from personaplex.bench.serve import Caller, picture, rows
from personaplex.cli.bench import counts
from personaplex.errors import EngineError, UsageError

FRAME = 0.08


def caller(answers: list[float], sent: int | None = None) -> Caller:
    """Who sent a frame every 80 ms from 10.0 on, and got answers so many seconds after each."""
    at = [10 + i * FRAME for i in range(len(answers) if sent is None else sent)]
    return Caller(None, 9.0, 9.5, at, [0.001] * len(at), [t + a for t, a in zip(at, answers, strict=False)])


def test_a_tick_is_from_a_frame_to_its_answer_also_after_one_was_shed() -> None:
    seen = caller([0.02, 0.03, math.nan, 0.1])
    assert seen.ticks == pytest.approx([20, 30, 100])
    assert seen.shed == 1


def test_an_underrun_is_an_answer_after_its_turn_once_for_each_delay() -> None:
    assert caller([0.02] * 10).underruns == 0
    assert caller([0.02, 0.055, 0.03, 0.059]).underruns == 0, "within the player's 40 ms"
    assert caller([0.02, 0.02, 0.1, 0.1, 0.1]).underruns == 1, "from then on it plays later"
    assert caller([0.02, 0.1, 0.02, 0.2, 0.02]).underruns == 2
    assert caller([]).underruns == 0


def test_what_is_late_shed_missing_or_refused_has_missed_its_deadline() -> None:
    calls = [caller([0.02] * 8 + [0.09, 0.02]), caller([0.02] * 6 + [math.nan], sent=10), Caller("all taken")]
    tick = rows(3, calls, 10)[0]
    assert tick.name == "tick" and len(tick.ms) == 16
    about = tick.extra
    assert about["missed"] == round((1 + 1 + 3 + 10) / 30, 4)
    assert (about["callers"], about["refused"], about["deficit"], about["shed"]) == (3, 1, 3, 1)
    assert about["send_p99_ms"] == 1.0
    found = {row.name: row for row in rows(3, calls, 10)}
    assert found["first audio"].ms == pytest.approx([20, 20]) and found["ready"].ms == pytest.approx([500, 500])


def test_where_everybody_was_refused_that_is_the_row() -> None:
    only = rows(2, [Caller("full"), Caller("full")], 10)
    assert [row.name for row in only] == ["refused"] and only[0].extra["missed"] == 1.0
    with pytest.raises(EngineError, match="nobody was served"):
        picture([row.as_json() for row in only])


def test_the_picture_has_each_curve_and_the_limit() -> None:
    ticks = [Row("tick", [10.0 * n, 19.0 * n, 90.0 * n], {"callers": n}).as_json() for n in (1, 2, 4)]
    root = ElementTree.fromstring(picture([*ticks, Row("ready", [5.0], {"callers": 1}).as_json()]))
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.attrib["points"].split() for line in root.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [3, 3, 3]
    words = [text.text for text in root.iter(f"{space}text")]
    assert {"p50", "p95", "p99", "80 ms", "1", "2", "4"} <= set(words)
    labels = {text.text: float(text.attrib["y"]) for text in root.iter(f"{space}text")}
    assert labels["p99"] < labels["p95"] < labels["p50"], "in the order of their curves"
    limit = next(path for path in root.iter(f"{space}path") if path.attrib["class"] == "limit")
    height = float(limit.attrib["d"].split()[1].split("H")[0])
    above = [float(point.split(",")[1]) < height for point in lines[2]]
    assert above == [True, True, True], "p99 of 88 ms and more is beyond the limit"
    assert all(float(point.split(",")[1]) > height for point in lines[0]), "the medians, 19 to 76 ms, are not"


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "two", "1,x"])
def test_numbers_of_callers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--callers"):
        counts(text, "callers")


def test_numbers_of_callers() -> None:
    assert counts("4,1,2,2", "callers") == [4, 1, 2]
