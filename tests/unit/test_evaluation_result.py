"""An evaluation's JSON file: read back as written, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from personaplex.errors import UsageError
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import Row, share


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = Result(
        "duplex", {"seed": 3}, [share("asked", [True, False], 0.9)], [{"item": "a"}], [Failure("b", "no transcript")]
    )
    result.save(tmp_path / "a.json")
    assert Result.load(tmp_path / "a.json") == result


def test_which_way_is_better_is_kept_and_older_files_are_read(tmp_path: Path) -> None:
    rows = [share("a", [True], better="lower"), share("b", [True]), share("c", [True], 0.5, at_most=True)]
    Result("duplex", {}, rows).save(tmp_path / "a.json")
    assert [row.better for row in Result.load(tmp_path / "a.json").rows] == ["lower", None, "lower"]
    entry = json.loads((tmp_path / "a.json").read_text())
    for row in entry["rows"]:
        del row["better"]
    (tmp_path / "old.json").write_text(json.dumps(entry))
    assert [row.better for row in Result.load(tmp_path / "old.json").rows] == [None, None, "lower"]


def test_infinity_becomes_null(tmp_path: Path) -> None:
    never = Row("stops", math.inf, (math.nan, math.nan), 1, unit="ms")
    Result("duplex", {}, [never], [{"ms": math.inf, "all": [math.nan]}]).save(tmp_path / "a.json")
    entry = json.loads((tmp_path / "a.json").read_text())
    assert entry["rows"][0]["value"] is None
    assert entry["items"] == [{"ms": None, "all": [None]}]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[" * 100_000, '{"kind": 1, "about": {}, "rows": [3], "items": [], "failures": []}']
)
def test_another_file_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="not the result of an evaluation"):
        Result.load(tmp_path / "a.json")


def test_a_missing_file_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Result.load(tmp_path / "none.json")
