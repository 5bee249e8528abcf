"""Two results: what differs by more than noise, by tests whose answers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personaplex.cli.main import main
from personaplex.errors import UsageError
from personaplex.evaluate.result import Result
from personaplex.evaluate.row import Row, median, share
from personaplex.evaluate.statistics import Share, fisher, mcnemar
from personaplex.report.comparison import Difference, compare
from personaplex.report.comparison_page import markdown


def shares(hits: int, n: int, **more: object) -> Result:
    return Result("x", {}, [share("right", [True] * hits + [False] * (n - hits), **more)])  # type: ignore[arg-type]


def only(first: Result, second: Result) -> Difference:
    (row,) = compare(first, second).rows
    return row


def test_newcombes_interval_is_that_of_his_paper() -> None:
    """Table II of the paper, its example (a), method 10: 56/70 - 48/80 = 0.2, from 0.0524 to 0.3339."""
    found = only(shares(48, 80), shares(56, 70))
    assert found.difference == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found.verdict == "more than noise" and "Newcombe" in found.method
    assert found.better is None, "without a goal no direction is the better one"


def test_small_shares_differ_by_chance() -> None:
    found = only(shares(8, 10), shares(5, 10))
    assert found.verdict == "within noise" and found.interval[0] < 0 < found.interval[1]
    assert found.probability == found.adjusted == pytest.approx(0.3498, abs=1e-4)
    same = only(shares(8, 10), shares(8, 10))
    assert (same.difference, same.verdict) == (0, "within noise") and same.probability == pytest.approx(1)


def test_fishers_probability_is_exact() -> None:
    """The lady tasting tea (three of four cups right: 34/70), and the least table of all: 2/2 and 0/2 are one in 3."""
    assert fisher(Share(3, 4), Share(1, 4)) == pytest.approx(34 / 70)
    assert fisher(Share(2, 2), Share(0, 2)) == pytest.approx(1 / 3)
    assert fisher(Share(0, 9), Share(0, 9)) == fisher(Share(0, 0), Share(3, 4)) == 1
    # By hand: 2 * C(6, 6) / C(12, 6).
    assert only(shares(6, 6), shares(0, 6)).probability == pytest.approx(2 / 924)
    assert fisher(Share(40_000, 50_000), Share(40_000, 50_000)) == pytest.approx(1)


def test_of_few_nothing_is_said_of_shares_either() -> None:
    found = only(shares(5, 5), shares(0, 5))
    assert (found.verdict, found.probability) == ("cannot tell", None) and math.isnan(found.interval[0])
    assert "fewer than 6" in found.method
    assert only(shares(6, 6), shares(0, 6)).verdict == "more than noise"


def test_better_is_by_the_goals_direction() -> None:
    assert only(shares(10, 100, goal=0.2), shares(60, 100, goal=0.2)).better is True
    assert only(shares(10, 100, goal=0.2, at_most=True), shares(60, 100, goal=0.2, at_most=True)).better is False


def test_better_is_known_without_a_goal_where_the_row_says_it() -> None:
    assert only(shares(10, 100, better="higher"), shares(60, 100, better="higher")).better is True
    assert only(shares(10, 100, better="lower"), shares(60, 100, better="lower")).better is False
    assert only(shares(10, 100), shares(60, 100)).better is None
    assert only(shares(10, 100), shares(60, 100, better="lower")).better is False, "the first is of an older version"
    worse = markdown(compare(shares(10, 100, better="lower"), shares(60, 100, better="lower")))
    assert "more than noise, worse" in worse


def paired(values: Sequence[float], names: Sequence[object], row: Row, what: str = "right") -> Result:
    items = [{"item": name, "values": {what: [value]}} for name, value in zip(names, values, strict=True)]
    return Result("x", {}, [row], items)


def test_mcnemar_counts_what_changed() -> None:
    """Of ten that changed, nine fell: 2 * (1 + 10) / 2^10."""
    assert mcnemar(9, 1) == pytest.approx(22 / 1024) and mcnemar(5, 5) == 1 and mcnemar(0, 0) == 1
    assert mcnemar(1, 2000) < 1e-300, "no overflow"
    first, second = [1.0] * 9 + [0.0] * 1 + [1.0] * 30, [0.0] * 9 + [1.0] * 1 + [1.0] * 30
    results = [paired(v, range(40), share("right", [x == 1 for x in v])) for v in (first, second)]
    found = only(*results)
    assert found.method == "40 pairs (McNemar)" and found.probability == pytest.approx(22 / 1024)
    unpaired = only(shares(39, 40), shares(31, 40))
    assert unpaired.probability is not None and found.probability != unpaired.probability


def test_pairs_find_a_shift_that_two_groups_do_not_show() -> None:
    """Every item is 10 ms slower, and items differ by hundreds: exact, with all 256 exchanges of 8 pairs."""
    ms = [100.0, 250, 300, 420, 500, 640, 810, 990]
    later = [value + 10 for value in ms]
    first, second = (paired(v, "abcdefgh", median("right", v)) for v in (ms, later))
    found = only(first, second)
    assert found.method == "8 pairs, signed ranks (permutation)" and found.probability == pytest.approx(2 / 256)
    assert found.interval == pytest.approx((10, 10)) and found.better is False
    alone = only(Result("x", {}, first.rows), Result("x", {}, second.rows))
    assert "MOVER" in alone.method and alone.verdict == "within noise"


def test_pairs_are_found_by_name_in_any_order_and_others_are_left_out() -> None:
    rng = np.random.default_rng(0)
    ms = rng.normal(300, 80, 30)
    order = rng.permutation(30)
    first = paired(ms.tolist(), range(30), median("right", ms.tolist()))
    later = [*(ms[order] + 25), 900.0]
    found = only(first, paired(later, [*order.tolist(), "new"], median("right", later)))
    assert found.method == "30 pairs of 30 and 31, signed ranks (permutation)"
    assert found.difference == pytest.approx(25) and found.verdict == "more than noise"
    strangers = only(first, paired(ms.tolist(), [f"other {i}" for i in range(30)], median("right", ms.tolist())))
    assert "MOVER" in strangers.method


def test_means_are_compared_by_the_mean_of_pairs() -> None:
    """Six of six rose, so two of the 64 exchanges are as large; a seventh that did not move changes nothing."""
    values = [0.1, 0.5, 0.2, 0.9, 0.4, 0.3, 0.7]
    later = [value + 0.01 * (i + 1) for i, value in enumerate(values[:6])] + values[6:]
    first, second = (paired(v, range(7), Row("right", float(np.mean(v)), (0, 1), 7)) for v in (values, later))
    found = only(first, second)
    assert found.method == "7 pairs (permutation)" and found.probability == pytest.approx(2 / 64)


def test_values_that_are_not_the_rows_are_not_used() -> None:
    ms = [float(value) for value in range(100, 900, 100)]
    wrong = paired(ms, "abcdefgh", Row("right", 123.0, (100, 150), 8, unit="ms"))
    assert "MOVER" in only(wrong, wrong).method
    twice = paired(ms, "aacdefgh", median("right", ms))
    assert "MOVER" in only(twice, twice).method, "two items of one name"


def test_several_values_of_an_item_are_exchanged_together() -> None:
    """Twelve turns in two conversations are two things that may differ, not twelve."""
    what = "latency"

    def result(*lists: list[float]) -> Result:
        items = [{"item": i, "values": {what: own}} for i, own in enumerate(lists)]
        return Result("x", {}, [median(what, [value for own in lists for value in own])], items)

    found = only(result([1.0] * 6, [2.0] * 6), result([11.0] * 6, [12.0] * 6))
    assert found.verdict == "cannot tell" and "fewer than 6" in found.method


NOTHING = (math.nan, math.nan)


@pytest.mark.parametrize(
    "row", [Row("x", math.inf, NOTHING, 30, unit="ms"), median("x", [1.0, 2.0, 3.0]), Row("x", 3.0, NOTHING, 40)]
)
def test_of_what_has_no_interval_nothing_is_said(row: Row) -> None:
    found = only(Result("x", {}, [row]), Result("x", {}, [median("x", [7.0, 8, 9]) if row.unit else row]))
    assert (found.verdict, found.probability, found.adjusted) == ("cannot tell", None, None)


def test_twenty_rows_of_nothing_make_no_finding() -> None:
    """One difference in twenty looks like one when it is looked at alone; corrected, it is called uncertain."""

    def result(second: bool) -> Result:
        made = [share(f"row {i}", [True] * 25 + [False] * 25) for i in range(19)]
        return Result(
            "x", {}, [*made, share("chance", [True] * (36 if second else 25) + [False] * (14 if second else 25))]
        )

    found = compare(result(False), result(True))
    chance = found.rows[-1]
    assert found.n_compared == 20 and chance.probability is not None and chance.adjusted is not None
    assert chance.probability < 0.05 < chance.adjusted == pytest.approx(20 * chance.probability)
    assert chance.verdict == "uncertain"
    assert only(shares(25, 50), shares(36, 50)).verdict == "more than noise"


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    """Two hundred times ten rows of the same coin: at most about one in twenty has any finding."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        hits = rng.binomial(60, 0.7, (2, 10))
        first, second = (
            Result("x", {}, [share(str(i), [True] * n + [False] * (60 - n)) for i, n in enumerate(side)])
            for side in hits.tolist()
        )
        alarms += any(row.verdict == "more than noise" for row in compare(first, second).rows)
    assert alarms <= 20


def test_rows_of_one_result_alone_and_what_else_differs_are_told() -> None:
    first = Result("x", {"model": "a", "seed": 1}, [Row("both", 1, (0, 2), 9), Row("mine", 1, (0, 2), 9)])
    second = Result("x", {"model": "b", "seed": 1}, [Row("both", 1, (0, 2), 9), Row("theirs", 1, (0, 2), 9)])
    found = compare(first, second)
    assert (found.only_first, found.only_second, found.about) == (["mine"], ["theirs"], {"model": ("a", "b")})
    json.dumps(found.as_json(), allow_nan=False)


def test_the_table_says_what_else_differs_and_sums_up_what_only_one_has() -> None:
    """In a line each; a hash is shortened, and what was found is no setting."""
    sampling = {"text_temperature": 0.7, "audio_top_k": 250}
    one: dict[str, Any] = {
        "codebooks": 8,
        "seed": 0,
        "sampling": sampling,
        "model": "a",
        "codec": "ab" * 32,
        "passed": True,
    }
    one["limits"] = {"words": 3, "speech": {"silence": 0.95}}
    other: dict[str, Any] = {
        "codebooks": 4,
        "seed": 0,
        "sampling": {"audio_top_k": 250},
        "model": "a",
        "codec": "cd" * 32,
    }
    other["limits"] = {"words": 3, "speech": {"silence": 0.5}}
    alone = [Row(f"row {i}", 1, (0, 2), 9) for i in range(9)]
    first, second = (Row("both", value, (value - 1, value + 1), 9) for value in (1, 2))
    said = markdown(compare(Result("x", one, [first, *alone]), Result("x", {**other, "controls": [{}]}, [second])))
    (differ,) = (line for line in said.splitlines() if line.startswith("Measured with"))
    expected = "codebooks: 8 and 4; sampling text temperature: 0.7 and not given; codec: abababab… and cdcdcdcd…; "
    expected += "limits speech silence: 0.95 and 0.5."
    assert differ == f"Measured with (first and second): {expected}"
    (only,) = (line for line in said.splitlines() if line.startswith("Found in one alone"))
    assert "9 rows of the first (row 0; " in only and only.endswith("row 5; and 3 more).")
    assert said.splitlines()[-2:] == [differ, only]


def test_where_nothing_can_be_said_the_table_says_why() -> None:
    said = markdown(compare(shares(2, 2), shares(0, 2)))
    assert "Of no row can anything be said: each has fewer than 6" in said and "compared" not in said
    two = [share(name, [True] * 30) for name in "ab"]
    assert "2 rows compared at once" in markdown(compare(Result("x", {}, two), Result("x", {}, two)))


def test_what_cannot_be_compared_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="one is a result of 'x', the other of 'codec'"):
        compare(shares(1, 2), Result("codec", {}, []))
    with pytest.raises(UsageError, match="no row in common"):
        compare(shares(1, 2), Result("x", {}, [Row("other", 1, (0, 1), 2)]))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, hits in (("a", 90), ("b", 60)):
        shares(hits, 100, goal=0.8).save(tmp_path / f"{name}.json")
    a, b, out = (str(tmp_path / name) for name in ("a.json", "b.json", "out.html"))
    assert main(["report", "--compare", a, b, "-o", out]) == 0
    printed = capsys.readouterr()
    assert "more than noise, worse" in printed.out and "1 row compared: " in printed.out
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["verdict"] == "more than noise"
    assert "more than noise, worse" in (tmp_path / "out.html").read_text()
    (tmp_path / "b.json").write_text('{"a": 1}')
    assert main(["report", "--compare", a, b]) == 2
    assert "not the result of an evaluation" in capsys.readouterr().err
    assert main(["report", "--compare", a, a, "-o", str(tmp_path / "a.html")]) == 2, "a.json would be written over"
    assert Result.load(tmp_path / "a.json").rows[0].value == 0.9
