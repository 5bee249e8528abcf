"""Words and their times: the benchmark's file, and a recogniser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from personaplex.cascade.engine import TimedWord
from personaplex.errors import EngineError, UsageError
from personaplex.evaluate.duplex.transcript import read_words, write_words
from personaplex.evaluate.hearing import EngineEar
from personaplex.speech import AGENTS, say
from personaplex.units import SAMPLE_RATE
from tests.cascade_engines import Recogniser

SAID = say(AGENTS["NATM0"], "hello there what time do you open")


def test_words_are_read_as_they_were_written(tmp_path: Path) -> None:
    words = [TimedWord("hello", 0.25, 0.5), TimedWord("there", 0.5, 0.875)]
    write_words(tmp_path / "output.json", words, recogniser="x")
    assert read_words(tmp_path / "output.json") == words
    entry = json.loads((tmp_path / "output.json").read_text())
    assert (entry["text"], entry["recogniser"]) == ("hello there", "x")


def test_a_word_without_an_end_takes_no_time_and_one_without_a_start_is_none(tmp_path: Path) -> None:
    chunks = [{"text": "a", "timestamp": [1, None]}, {"text": "b", "timestamp": [None, 2]}]
    (tmp_path / "output.json").write_text(json.dumps({"chunks": chunks}))
    assert read_words(tmp_path / "output.json") == [("a", 1, 1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"chunks": 3}',
        '{"chunks": [{"text": "a"}]}',
        '{"chunks": [{"text": "a", "timestamp": [1]}]}',
        '{"chunks": [{"text": "a", "timestamp": ["x", 2]}]}',
        '{"chunks": [{"text": "a", "timestamp": [NaN, 2]}]}',
    ],
)
def test_another_file_is_refused_in_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_words(tmp_path / "output.json")
    (tmp_path / "output.json").write_text(text)
    with pytest.raises(UsageError, match="output"):
        read_words(tmp_path / "output.json")


def test_a_recogniser_hears_words_from_a_moment_on_where_they_were_said() -> None:
    pcm = np.concatenate([SAID.pcm, np.zeros(SAMPLE_RATE, np.float32), SAID.pcm, np.zeros(SAMPLE_RATE, np.float32)])
    again = len(SAID.pcm) / SAMPLE_RATE + 1
    ear = EngineEar("pocketsphinx")
    words = ear.hear_words(pcm, begin=again - 0.3)
    assert ear.hear(pcm[round((again - 0.3) * SAMPLE_RATE) :]).split() == [word.text for word in words]
    assert ear.hear_words(pcm, begin=len(pcm) / SAMPLE_RATE) == []
    ear.close()
    (opened,) = [word for word in words if word.text == "open"]
    assert opened.start == pytest.approx(again + SAID.words[-1].start / SAMPLE_RATE, abs=0.15)
    assert min(word.start for word in words) > again - 0.3


def test_a_recogniser_without_times_cannot_be_used() -> None:
    recogniser = Recogniser()
    recogniser.said = ["hello there"]
    with pytest.raises(EngineError, match="when its words were spoken"):
        EngineEar("script", recogniser=recogniser).hear_words(SAID.pcm)
