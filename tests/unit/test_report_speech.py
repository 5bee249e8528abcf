"""Who spoke when, in sound made by hand: turns, latencies, interruptions, early starts and words thrown in."""

from __future__ import annotations

import math
import re
from html import unescape

import numpy as np
import pytest

from personaplex.evaluate.row import as_markdown
from personaplex.evaluate.span import Span
from personaplex.report.recorded import Recorded, Said, looks_swapped, words
from personaplex.report.speech import Overlap, Speech, Turn, find_speech, overlaps, spans, turns
from personaplex.report.summary import Shown, rows, signs_of
from personaplex.report.tables import of_turns
from personaplex.report.timeline import timeline
from personaplex.steps import StepMeasure, StepRecord
from personaplex.turns import CHUNK_SECONDS
from personaplex.units import SAMPLE_RATE
from personaplex.vad import LevelDetector

EXACT = 1.5 * CHUNK_SECONDS
"""What a detector with chunks of 32 ms can tell of a begin or an end."""


def sound(seconds: float, *spoken: tuple[float, float]) -> np.ndarray:
    """Something like a voice from each second to each, and nothing else."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    on = np.zeros(len(t), bool)
    for begin, end in spoken:
        on[round(begin * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = True
    voice = np.sin(2 * np.pi * 170 * t * (1 + 0.02 * np.sin(9 * t))) * (0.7 + 0.3 * np.sin(23 * t))
    return (0.2 * voice * on).astype(np.float32)


def heard(user: list[tuple[float, float]], agent: list[tuple[float, float]], seconds: float = 12) -> Speech:
    return find_speech(sound(seconds, *user), sound(seconds, *agent), LevelDetector, LevelDetector)


def test_spans_begin_and_end_where_the_sound_does() -> None:
    found = spans(sound(6, (0.5, 1.5), (1.7, 2.4), (3.0, 3.05), (4, 6)), LevelDetector())
    # The gap of 0.2 s is within a span, the click of 50 ms is none, the last lasts to the end.
    assert len(found) == 2
    assert np.array(found) == pytest.approx(np.array([[0.5, 2.4], [4, 6]]), abs=EXACT)
    assert spans(np.zeros(SAMPLE_RATE, np.float32), LevelDetector()) == []


def test_an_answer_after_the_users_end() -> None:
    found = heard([(1, 3)], [(3.6, 5)])
    assert [turn.side for turn in found.turns] == ["user", "agent"]
    (answer,) = found.answers
    assert answer.latency == pytest.approx(0.6, abs=EXACT) and answer.at == pytest.approx(3.6, abs=EXACT)
    assert (found.unanswered, list(found.overlaps), found.overlapped) == (0, [], 0)


def test_an_early_start_is_a_negative_latency_and_an_overlap() -> None:
    found = heard([(1, 3)], [(2.5, 5)])
    assert found.answers[0].latency == pytest.approx(-0.5, abs=EXACT)
    (overlap,) = found.overlaps
    assert (overlap.second, overlap.outlasts, overlap.what) == ("agent", True, "the agent begins early")
    assert found.overlapped == pytest.approx(0.5 / 4, abs=0.02) and found.stops == []


def test_an_interruption_tells_how_long_the_agent_went_on() -> None:
    found = heard([(0.5, 1.5), (4, 6)], [(2, 4.7), (7, 8)])
    assert [turn.side for turn in found.turns] == ["user", "agent", "user", "agent"]
    assert found.overlaps[0].what == "the user interrupts"
    assert found.stops == [pytest.approx(0.7, abs=EXACT)]
    assert [answer.latency for answer in found.answers] == pytest.approx([0.5, 1.0], abs=EXACT)


def test_a_nod_is_no_turn_and_no_answer() -> None:
    """Said within the other's speech: the user goes on, and has not been answered."""
    found = heard([(1, 5)], [(2, 2.4)])
    assert [turn.side for turn in found.turns] == ["user"]
    assert (found.answers, found.unanswered) == ([], 1)
    assert found.overlaps[0].what == "the agent speaks within the user's speech"


def test_pauses_of_one_side_do_not_end_its_turn() -> None:
    found = heard([(1, 2), (3, 4)], [(4.5, 5), (6, 7)])
    assert [(turn.side, round(turn.start), round(turn.end)) for turn in found.turns] == [
        ("user", 1, 4),
        ("agent", 4, 7),
    ]
    assert found.answers[0].latency == pytest.approx(0.5, abs=EXACT)


def test_two_who_begin_and_end_at_once_both_have_a_turn() -> None:
    same = [Span(1.0, 2.0)]
    assert turns(same, same) == [Turn("user", 1.0, 2.0), Turn("agent", 1.0, 2.0)]
    assert overlaps(same, same) == [Overlap(1.0, 2.0, "agent", False)]


def recorded(user: np.ndarray, agent: np.ndarray, **more: object) -> Recorded:
    return Recorded("a", "test", agent, user, **more)  # type: ignore[arg-type]


WORDS = [Said(0.6 + 0.3 * i, f" word{i}") for i in range(6)]


def test_swapped_channels_are_seen_by_where_the_words_are() -> None:
    agent, user = sound(6, (0.5, 2.5)), sound(6, (3.5, 5.5))
    right = recorded(user, agent, said=WORDS)
    assert not looks_swapped(right) and looks_swapped(recorded(agent, user, said=WORDS))
    assert not looks_swapped(recorded(agent, user, said=WORDS[:3])), "three words say nothing"
    both = sound(6, (0.2, 5.5))
    assert not looks_swapped(recorded(both, both, said=WORDS)), "while both sound, nothing can be told"


def turn_rows(one: Recorded) -> list[list[str]]:
    """The table's rows: begins, who, lasts, latency, said, overlap."""
    table = of_turns(Shown(one, find_speech(one.user, one.agent, LevelDetector, LevelDetector), []))
    rows = re.findall("<tr>(.*?)</tr>", table)[1:]
    return [[unescape(cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_words_are_in_the_row_whose_sound_they_are() -> None:
    """The agent speaks at 2 s, inside the user's turn, and answers at 5.2 s: two rows, each with its own words."""
    said = [Said(1.7, " mm"), Said(2.1, "hm"), Said(4.9, " we"), Said(5.6, " open"), Said(6.2, " late")]
    one = recorded(sound(8, (0.5, 4.5)), sound(8, (2, 2.6), (5.2, 6)), said=said, heard=[Said(0.4, "when")])
    asked, nod, answer = turn_rows(one)
    assert (asked[1], nod[1], answer[1]) == ("user", "agent, in the user’s turn", "agent")
    assert (asked[4], nod[4], answer[4]) == ("when", "mmhm", "we open late")
    assert float(nod[0].split()[0]) == pytest.approx(2, abs=EXACT)
    assert nod[3] == "" and answer[3].endswith(" ms")
    assert nod[5].startswith("the agent speaks within the user's speech (0.") and asked[5] == nod[5]
    assert answer[5] == ""


def test_a_text_of_one_moment_is_drawn_as_one() -> None:
    """A question is noted where it begins: its words would be drawn over each other."""
    one = recorded(sound(6, (1, 2)), sound(6, (3, 4)), heard=[Said(1.0, "what time is it")], said=WORDS)
    drawn = timeline(Shown(one, find_speech(one.user, one.agent, LevelDetector, LevelDetector), []), 60)
    texts = re.findall(r'<text class="said (\w+)"[^>]*>([^<]*)<', drawn)
    assert texts == [*(("agent", f"word{i}") for i in range(6)), ("user", "what time is it")]


def test_a_word_between_two_sounds_is_of_the_one_that_comes() -> None:
    """0.4 s before the second, and 0.2 s after the first, whose turns are apart because the user speaks between."""
    one = recorded(sound(8, (3.1, 3.4)), sound(8, (1, 3), (3.6, 5)), said=[Said(2.9, " a"), Said(3.2, " b")])
    assert [(row[1], row[4]) for row in turn_rows(one)] == [("agent", "a"), ("user", "–"), ("agent", "b")]


def test_pieces_become_words_where_their_first_piece_is() -> None:
    pieces = [Said(0, " hel"), Said(1, "lo"), Said(2, " wor"), Said(3, "ld. "), Said(4, "I"), Said(5, "'m here")]
    assert words(pieces) == [Said(0, "hello"), Said(2, "world."), Said(4, "I'm"), Said(5, "here")]
    assert words([Said(1, "one two "), Said(2, "  "), Said(3, "three")]) == [
        Said(1, "one"), Said(1, "two"), Said(3, "three"),
    ]  # fmt: skip


def test_rows_count_turns_by_turn_and_steps_by_conversation() -> None:
    steps = StepRecord(
        [0, 0.08, 0.16], [StepMeasure(10, 1, 2, 3), StepMeasure(90, 3, 2, math.nan), StepMeasure(20, 2, 2, 1)]
    )
    first = recorded(sound(9, (0.5, 2), (6, 7)), sound(9, (2.5, 5)), steps=steps)
    second = recorded(sound(9, (0.5, 2)), sound(9, (1.6, 4)))
    shown = [
        Shown(one, find_speech(one.user, one.agent, LevelDetector, LevelDetector), signs_of(one))
        for one in (first, second)
    ]
    found = {row.what: row for row in rows(shown)}
    answered, early, latency = (found[n] for n in ("user turns answered", "answers begun early", "answer latency"))
    assert answered.value == pytest.approx(2 / 3) and (answered.n, early.value, early.n) == (3, 0.5, 2)
    assert latency.value == pytest.approx(1000 * (0.5 - 0.4) / 2, abs=1000 * EXACT) and latency.unit == "ms"
    assert math.isnan(latency.interval[0]), "two values have no interval"
    assert (found["step time"].value, found["step time"].n) == (20, 1)
    assert found["steps over 80 ms"].value == pytest.approx(1 / 3)
    assert "| text entropy |  | 2.000 nats |" in as_markdown(list(found.values()))
    assert [found[f"{n} entropy"].value for n in ("text", "semantic", "acoustic")] == [2, 2, 2]


def test_a_side_that_is_not_there_is_not_counted() -> None:
    one = recorded(np.zeros(5 * SAMPLE_RATE, np.float32), sound(5, (1, 2)), lacks=["the user's side: not there"])
    shown = Shown(one, find_speech(one.user, one.agent, LevelDetector, LevelDetector), signs_of(one))
    assert {row.what for row in rows([shown])} == {"conversations with signs of degenerate speech"}
