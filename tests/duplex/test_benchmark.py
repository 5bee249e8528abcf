"""Whole subsets made by hand, with answers known beforehand: every number of the table, and honest denominators."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import numpy as np
import pytest

from personaplex.audio import write_audio
from personaplex.errors import UsageError
from personaplex.evaluate.duplex import table
from personaplex.evaluate.duplex.benchmark import evaluate, find_human
from personaplex.evaluate.duplex.clips import Clip, find_clips
from personaplex.evaluate.duplex.scores import Scorer
from personaplex.evaluate.hearing import EngineEar
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import Row
from personaplex.evaluate.statistics import mean_interval, pooled_mean_interval
from personaplex.speech import AGENTS, say
from personaplex.units import SAMPLE_RATE
from tests.cascade_engines import Recogniser
from tests.duplex.folders import hum, interrupt, overlap, put, turn, words

AGENT, USER = AGENTS["NATF2"], AGENTS["NATM0"]
TURN = words((2.5, 3.0), (3.0, 3.6))
LONG = say(AGENT, "last summer we drove to the sea and it took us almost nine hours").pcm
SHORT = say(AGENT, "what about rome").pcm
NOD = say(AGENT, "yeah").pcm
PACES = ("before", "after", "clean")


def unheard() -> NoReturn:
    raise AssertionError("no recogniser is needed")


def run(root: Path, scorer: Scorer | None = None) -> tuple[Result, dict[str, Row]]:
    result = evaluate(find_clips(root), scorer or Scorer(unheard, "none"), {"seed": 0})
    return result, {row.what.split(": ", 1)[1]: row for row in result.rows}


def placed(*pieces: tuple[float, np.ndarray], seconds: float = 10.0) -> np.ndarray:
    pcm = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for start, sound in pieces:
        place = pcm[round(start * SAMPLE_RATE) :][: len(sound)]
        place += sound[: len(place)]
    return pcm


def test_pauses_are_measured_by_takeovers_alone(tmp_path: Path) -> None:
    subset = tmp_path / "synthetic_pause_handling"
    for name, said in (("1", words()), ("2", words((1, 1.4), (1.5, 1.8))), ("3", TURN), ("4", words((1, 2.5)))):
        put(subset / name, said=said)
    _, rows = run(tmp_path)
    assert rows["takeover rate (lower is better)"].value == 0.5
    assert rows["takeover rate (lower is better)"].n == 4


def test_turns_are_measured_by_takeovers_and_how_soon_they_come(tmp_path: Path) -> None:
    """Of four takeovers one is 0.5 s early: the benchmark averages it as 0, and says nothing of it."""
    subset = tmp_path / "candor_turn_taking"
    for name, (end, said) in enumerate([(2.0, TURN), (2.1, TURN), (2.2, TURN), (3.0, TURN), (2.0, words((2.1, 2.4)))]):
        put(subset / str(name), turn(end), said)
    result, rows = run(tmp_path)
    assert rows["takeover rate (higher is better)"].value == 0.8
    assert rows["latency of takeovers, s (lower is better)"].value == pytest.approx((0.5 + 0.4 + 0.3 + 0) / 4)
    assert rows["latency of takeovers, s (lower is better)"].n == 4
    assert rows["the same without clamping, s"].value == pytest.approx((0.5 + 0.4 + 0.3 - 0.5) / 4)
    early = next(row for what, row in rows.items() if "before the user's end" in what)
    assert (early.value, early.n) == (0.25, 4)
    assert result.items[3]["latency"] == pytest.approx(-0.5)
    assert result.items[4]["latency"] is None


def test_without_a_takeover_there_is_no_latency(tmp_path: Path) -> None:
    put(tmp_path / "candor_turn_taking" / "1", turn(2.0), words())
    _, rows = run(tmp_path)
    assert math.isnan(rows["latency of takeovers, s (lower is better)"].value)
    assert rows["latency of takeovers, s (lower is better)"].n == 0


def test_interruptions_tell_who_never_stopped(tmp_path: Path) -> None:
    subset = tmp_path / "synthetic_user_interruption"
    stopped = placed((2.8, LONG[: round(1.5 * SAMPLE_RATE)]), (5.4, SHORT))
    put(subset / "1", interrupt(4.0, 5.0), words((5.5, 5.8), (5.8, 7.0)), agent=stopped)
    put(subset / "2", interrupt(4.0, 5.0), words((5.02, 5.8), (5.8, 7.0)), agent=placed((3.0, LONG)))
    result, rows = run(tmp_path)
    assert rows["takeover rate (higher is better)"].value == 1.0
    assert rows["latency of takeovers, s (lower is better)"].value == pytest.approx(0.26)
    talking = next(row for what, row in rows.items() if "still talking" in what)
    assert (talking.value, talking.n) == (0.5, 2)
    assert rows["agent speaking when the interruption began"].value == 1.0
    assert not any("before the user's end" in what for what in rows), "only what follows it is heard: it could be none"
    assert "a language model judges it" in result.about["left_out"][0]


def test_an_early_start_into_an_interruption_is_told_where_its_words_are_known(tmp_path: Path) -> None:
    put(tmp_path / "synthetic_user_interruption" / "1", interrupt(4.0, 5.0), words((4.5, 5.8), (5.8, 7.0)))
    _, rows = run(tmp_path)
    early = next(row for what, row in rows.items() if "before the user's end" in what)
    assert early.value == 1 and rows["the same without clamping, s"].value == pytest.approx(-0.5)


def test_every_row_is_the_mean_of_what_the_clips_say_they_add(tmp_path: Path) -> None:
    """Which is what a comparison in pairs needs (`report --compare`)."""
    for i, end in enumerate((2.0, 2.2, 3.0)):
        put(tmp_path / "candor_turn_taking" / str(i), turn(end), TURN)
        put(tmp_path / "synthetic_user_interruption" / str(i), interrupt(4.0, 5 + i / 10), words((5.5, 5.8), (6, 7)))
        put(tmp_path / "icc_backchannel" / str(i), said=words(), agent=placed((2.0 + i, NOD)))
        put(tmp_path / "user_backchannel" / str(i), overlap(4.0, 4.4), words((1, 2)), agent=placed((3.0, LONG)))
    result, _ = run(tmp_path)
    assert len({item["item"] for item in result.items}) == 12
    for row in result.rows:
        added = [value for item in result.items for value in item["values"].get(row.what, [])]
        assert len(added) == row.n or row.what.endswith("clips measured"), row.what
        assert not added or np.mean(added) == pytest.approx(row.value), row.what
        said = re.search(r"\((higher|lower) is better", row.what)
        assert said is None or said[1] == row.better, "report --compare goes by it"


def test_an_agent_that_is_quiet_is_not_interrupted(tmp_path: Path) -> None:
    quiet = placed((0.5, SHORT), (5.4, SHORT))
    put(tmp_path / "synthetic_user_interruption" / "1", interrupt(4.0, 5.0), words((5.5, 7.0)), agent=quiet)
    _, rows = run(tmp_path)
    assert rows["agent speaking when the interruption began"].value == 0.0


def test_of_an_interruption_only_what_follows_it_is_recognised(tmp_path: Path) -> None:
    put(tmp_path / "synthetic_user_interruption" / "1", interrupt(3.0, 6.0), agent=placed((1.0, LONG), (7.0, LONG)))
    heard = Recogniser()
    result, _ = run(tmp_path, Scorer(lambda: EngineEar("script", recogniser=heard), "script"))
    assert len(heard.n_samples) == 1 and heard.n_samples[0] < 5 * 16_000, "one utterance, and not the first"
    assert result.about["words_recognised"] == 1 and result.about["recogniser"] == "script"
    assert not (tmp_path / "synthetic_user_interruption" / "1" / "output.json").exists()


def test_recognised_words_are_kept_when_that_is_wanted(tmp_path: Path) -> None:
    folder = put(tmp_path / "candor_pause_handling" / "1", agent=placed((1.0, LONG)))

    def hears() -> EngineEar:
        return EngineEar("script", recogniser=Recogniser())

    run(tmp_path, Scorer(hears, "script", keep_words=True))
    assert json.loads((folder / "output.json").read_text()) == {"recogniser": "script", "text": "", "chunks": []}


def test_backchannels_are_measured_against_people_where_they_are_known(tmp_path: Path) -> None:
    subset = tmp_path / "icc_backchannel"
    nods = placed((2.0, NOD), (6.0, NOD))
    put(subset / "1", said=words((2.1, 2.4), (6.1, 6.4)), agent=nods)
    put(subset / "2", said=words(), agent=placed((1.0, LONG)))
    put(subset / "3", said=words(), agent=placed())
    result, rows = run(tmp_path)
    assert rows["takeover rate (lower is better)"].value == pytest.approx(1 / 3)
    assert rows["backchannels a second (higher is better)"].value == pytest.approx(0.2 / 3)
    assert rows["clips with a backchannel"].value == pytest.approx(1 / 3)
    jsd = "JSD of their times to people's (lower is better; 1 for none)"
    assert rows[jsd].n == 0 and "--human" in result.about["left_out"][0]

    there, elsewhere = [0.0] * 51, [0.0] * 51
    for at in (10, 11, 12, 30, 31, 32):
        there[at] = elsewhere[at + 8] = 1.0
    (subset / "icc_gt_distribution.json").write_text(json.dumps({"1": there, "2": there, "3": there}))
    human = find_human(find_clips(tmp_path))
    result, rows = run(tmp_path, Scorer(unheard, "none", human))
    assert result.about["left_out"] == []
    assert result.items[0]["jsd"] < 0.4 and result.items[1]["jsd"] == 1.0
    assert rows[jsd].n == 3
    (tmp_path / "others.json").write_text(json.dumps({"1": elsewhere}))
    worse, _ = run(tmp_path, Scorer(unheard, "none", find_human(find_clips(tmp_path), tmp_path / "others.json")))
    assert worse.items[0]["jsd"] > 0.8, "in other places it is farther away"
    assert worse.items[1]["jsd"] is None, "nobody knows people's of this clip"


@pytest.mark.parametrize("text", ["[]", '{"1": 3}', '{"1": []}', '{"1": [0, 0]}', '{"1": [-1, 2]}', '{"1": ["x"]}'])
def test_a_file_that_is_no_distribution_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path / "icc_backchannel" / "1")
    (tmp_path / "people.json").write_text(text)
    with pytest.raises(UsageError, match="distribution"):
        find_human(find_clips(tmp_path), tmp_path / "people.json")
    with pytest.raises(UsageError, match="does not exist"):
        find_human(find_clips(tmp_path), tmp_path / "nobody.json")


def test_overlaps_are_measured_by_when_each_side_speaks(tmp_path: Path) -> None:
    subset = tmp_path / "user_interruption"
    user = placed((0.5, SHORT), (5.0, SHORT))
    event = (5.03, 5.0 + len(SHORT) / SAMPLE_RATE - 0.03)
    gives_way = placed((2.0, LONG[: round(3.3 * SAMPLE_RATE)]), (7.0, SHORT))
    folder = put(subset / "1", overlap(*event), words((2.0, 3.0), (4.0, 5.0), (7.1, 7.7)), user=user, agent=gives_way)
    write_audio(folder / "clean_input.wav", placed((0.5, SHORT)))
    write_audio(folder / "clean_output.wav", placed((2.0, LONG)))
    (folder / "clean_output.json").write_text(json.dumps(words((2.0, 3.0), (3.0, 4.0))))
    put(subset / "2", overlap(*event), words((2.0, 7.0)), user=user, agent=placed((2.0, LONG), (4.5, LONG)))
    put(subset / "3", overlap(*event), words(), user=user, agent=placed())
    result, rows = run(tmp_path)
    one, two, three = result.items
    assert one["spoke"] and one["silent_after"] == pytest.approx(0.27, abs=0.15)
    assert one["answered_after"] == pytest.approx(7.0 - event[1], abs=0.15)
    assert two["spoke"] and two["silent_after"] is None
    assert not three["spoke"] and three["answered_after"] is None
    assert rows["agent speaking when the event began"].value == pytest.approx(2 / 3)
    assert rows["of these, silent before the event's end"].value == 0.5
    stops = rows["stop latency, s: every time both spoke"]
    assert stops.n == 2 and stops.value == pytest.approx((0.27 + event[1] - event[0]) / 2, abs=0.15)
    assert one["words_per_minute"] == {"before": 40.0, "after": pytest.approx(100.0), "clean": 60.0}
    assert rows["words a minute in the same call without the event"].n == 1
    assert len(result.about["left_out"]) == 2
    assert stops.better == "lower", "here, and not where the user only nods"
    nodded = [{**item, "task": "user backchannel"} for item in result.items]
    assert [row.better for row in table.rows(find_clips(tmp_path), nodded) if "latency" in row.what] == [None, None]


def test_the_intervals_of_latencies_are_over_clips_not_over_every_pause_of_them() -> None:
    """Five times the same in each of ten clips tells no more than once."""
    silent = {"spoke": False, "silent_after": None, "answered_after": None, "words_per_minute": dict.fromkeys(PACES)}
    about = {"subset": "user_interruption", "task": "user interruption"}
    clips = cast("list[Clip]", [SimpleNamespace(**about)] * 10)

    def latency(times: int) -> Row:
        spans = [[[0.0, 0.2 + i / 10]] * times for i in range(10)]
        items = [{**about, **silent, "stops": own, "answers": own} for own in spans]
        stop, response = (row for row in table.rows(clips, items) if " latency, s" in row.what)
        assert stop.interval == response.interval
        return stop

    once, often = latency(1), latency(5)
    assert (once.n, often.n) == (10, 50) and often.value == pytest.approx(once.value)
    assert often.interval == pytest.approx(once.interval)
    assert once.interval == pytest.approx(mean_interval([0.2 + i / 10 for i in range(10)]))
    few = [[1.0], [2.0, 2.0], [4.0], [1.0], [3.0]]
    assert all(map(math.isnan, pooled_mean_interval([*few, []]))), "five clips with a time are too few"
    assert pooled_mean_interval([*few, [2.0], []]) == pooled_mean_interval([*few, [2.0]])


def test_one_broken_clip_among_many_is_told_and_the_rest_is_counted(tmp_path: Path) -> None:
    subset = tmp_path / "candor_turn_taking"
    quick = hum(3.7)
    for name in range(40):
        put(subset / str(name), turn(2.0), TURN, agent=quick)
    (subset / "3" / "output.wav").write_bytes(b"")
    (subset / "5" / "output.json").write_text("not JSON")
    (subset / "7" / "turn_taking.json").unlink()
    (subset / "9" / "output.wav").unlink()
    (subset / "11" / "turn_taking.json").write_text(json.dumps(turn(200.0)["turn_taking.json"]))
    failed = Failure("candor_turn_taking/13", "the model gave up")
    clips = find_clips(tmp_path)
    result = evaluate(clips, Scorer(unheard, "none"), {}, [failed])
    assert {failure.item.split("/")[1] for failure in result.failures} == {"3", "5", "7", "9", "11", "13"}
    reasons = {failure.item.split("/")[1]: failure.reason for failure in result.failures}
    assert "empty" in reasons["3"] and "not JSON" in reasons["5"] and "does not exist" in reasons["7"]
    assert "does not exist" in reasons["9"] and "200" in reasons["11"]
    measured, takeovers = result.rows[0], result.rows[1]
    assert (measured.value, measured.n) == (34 / 40, 40)
    assert (takeovers.value, takeovers.n) == (1.0, 34)
    assert result.about["shorter_than_input"] == 34


def test_recordings_of_any_rate_are_measured_alike(tmp_path: Path) -> None:
    import soundfile

    subset = tmp_path / "icc_backchannel"
    nods = placed((2.0, NOD), (6.0, NOD))
    for rate, every in ((24_000, 1), (8_000, 3)):
        folder = put(subset / str(rate), said=words((2.1, 2.4), (6.1, 6.4)))
        soundfile.write(folder / "output.wav", nods[::every], rate)
    result, _ = run(tmp_path)
    assert [len(item["backchannels"]) for item in result.items] == [2, 2]
    assert result.items[0]["seconds"] == result.items[1]["seconds"] == 10.0


def test_a_result_is_kept_whole(tmp_path: Path) -> None:
    put(tmp_path / "data" / "candor_turn_taking" / "1", turn(2.0), TURN)
    result, _ = run(tmp_path / "data")
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json").items == result.items


def test_clips_share_nothing(tmp_path: Path) -> None:
    """The detector remembers what it heard: each recording has its own."""
    subset = tmp_path / "icc_backchannel"
    for name in ("1", "2"):
        put(subset / name, said=words(), agent=placed((2.0, NOD), (6.0, LONG)))
    result, _ = run(tmp_path)
    assert result.items[0]["backchannels"] == result.items[1]["backchannels"]
    alone = Scorer(unheard, "none").score(Clip("icc_backchannel", "backchannel", "2", subset / "2", subset / "2"))
    assert alone == {name: value for name, value in result.items[1].items() if name != "values"}
