"""Recordings cut where nobody speaks, heard piece by piece, in little memory; and their subtitles."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from personaplex.audio import stream_audio
from personaplex.cascade.engine import TimedWord, Transcript
from personaplex.cascade.registry import open_recogniser
from personaplex.cascade.subtitles import CUE_SECONDS, LINE_CHARACTERS, Cue, cues, srt, vtt
from personaplex.cascade.transcription import LONGEST_SECONDS, Utterance, stretches, transcribe
from personaplex.errors import EngineError
from personaplex.units import SAMPLE_RATE
from tests.cascade_engines import LevelDetector, Listening, Recogniser, silence, speech
from tests.conftest import SOAK
from tests.whisper_model import WORDS, write_whisper


def recording(*seconds: float) -> np.ndarray:
    """Silence and speech in turns, [S]."""
    return np.concatenate([(silence, speech)[i % 2](s) for i, s in enumerate(seconds)])


@given(
    lengths=st.lists(st.tuples(st.floats(1.3, 4), st.floats(0.3, 3)), max_size=4),
    end=st.floats(0, 2),
    size=st.integers(500, 70_000),
)
def test_each_stretch_of_speech_is_cut_out_whole_and_once(
    lengths: list[tuple[float, float]], end: float, size: int
) -> None:
    pcm = recording(*(s for pair in lengths for s in pair), end)
    found = list(stretches(np.split(pcm, range(size, len(pcm), size)), LevelDetector()))
    spoken, at = [], 0.0
    for quiet, loud in lengths:
        spoken.append((at + quiet, at + quiet + loud))
        at += quiet + loud
    assert len(found) == len(spoken)
    last_end = 0.0
    for (start, stop), stretch in zip(spoken, found, strict=True):
        ends = stretch.start + len(stretch.pcm) / SAMPLE_RATE
        assert last_end <= stretch.start <= start and stop - 0.04 <= ends <= stop + 0.7
        assert start - stretch.start < 0.75
        first = round(stretch.start * SAMPLE_RATE)
        assert np.array_equal(stretch.pcm, pcm[first : first + len(stretch.pcm)])
        last_end = ends


class Loudness:
    """A detector without a memory of the background."""

    def push(self, pcm: np.ndarray) -> Iterator[float]:
        for chunk in pcm.reshape(-1, 768):
            yield float(np.abs(chunk).max() > 0.1)


def test_who_speaks_without_a_pause_is_cut_where_speech_is_least_probable() -> None:
    talking = recording(0.96, 24.96, 0.192, 48)
    found = list(stretches([talking], Loudness()))
    assert len(found) == 4 and all(len(stretch.pcm) <= LONGEST_SECONDS * SAMPLE_RATE + 768 for stretch in found)
    assert 25.92 < found[1].start <= 26.112, "in the little pause"
    joined = np.concatenate([stretch.pcm for stretch in found])
    assert np.array_equal(joined, talking[-len(joined) :]) and len(joined) > 73 * SAMPLE_RATE, "and nothing is lost"


def test_a_cut_in_a_pause_leaves_no_stretch_of_silence() -> None:
    """The turn of 30 s is cut just after its last word; a model would make words of the silence that is left."""
    for after in (3.2, 0.32):  # the turn ends, and the recording does
        (stretch,) = stretches([recording(0.96, 29.184, after)], Loudness())
        assert len(stretch.pcm) >= 29.184 * SAMPLE_RATE


def test_times_are_those_of_the_whole_recording(tmp_path: Path) -> None:
    whisper = open_recogniser(f"faster-whisper:{write_whisper(tmp_path / 'whisper')}")
    found = list(transcribe([recording(2, 1, 5, 1.5, 2)], whisper, detector=LevelDetector()))
    assert [said.text for said in found] == [" ".join(WORDS)] * 2
    for said, (start, end) in zip(found, [(2, 3), (8, 9.5)], strict=True):
        assert start - 0.75 <= said.start < said.end <= end + 0.7
        assert said.start == said.words[0].start and said.end == said.words[-1].end
        assert tuple(word.text for word in said.words) == WORDS


def test_what_an_engine_does_not_understand_is_left_out_and_its_failure_is_told() -> None:
    engine = Recogniser()
    engine.said = ["one", "", "three", RuntimeError("no more")]
    pieces = [recording(1, 1, 1, 1, 1, 1, 1, 1, 1)]
    found = []
    with pytest.raises(EngineError, match="the recogniser failed: RuntimeError: no more"):
        for said in transcribe(pieces, engine, detector=LevelDetector()):
            found.append((said.text, round(said.start)))
    assert found == [("one", 0), ("three", 5)] and engine.n_open == 0


def test_hours_take_no_more_memory_than_minutes(tmp_path: Path) -> None:
    """Two hours with PERSONAPLEX_SOAK, five minutes otherwise: what NumPy and Python hold at most."""
    seconds, path = 7_200 if SOAK else 300, tmp_path / "long.flac"
    minute = recording(20, 15, 15, 5, 5)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, format="FLAC") as file:
        for _ in range(seconds // 60):
            file.write(minute)
    engine = Recogniser()
    engine.said = ["one two"] * (2 * seconds // 60)
    tracemalloc.start()
    try:
        n_heard = sum(1 for _ in transcribe(stream_audio(path), engine, detector=LevelDetector()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_heard == 2 * seconds // 60
    assert peak < 8e6, f"of {seconds * SAMPLE_RATE * 4} bytes"


WORDY = "It is, of course, a long & winding road that leads -> to your door; it will never disappear. " * 3


def test_cues_can_be_read_and_say_everything() -> None:
    text = WORDY.strip()

    def timed(step: float) -> Utterance:
        words = tuple(TimedWord(word, step * i, step * (i + 1)) for i, word in enumerate(text.split()))
        return Utterance(0, words[-1].end, text, words)

    for said in (timed(0.5), timed(0.1), Utterance(0, 27.0, text)):
        found = list(cues(said))
        assert " ".join(cue.text for cue in found) == text and len(found) >= 4
        assert all(len(cue.text) <= 2 * LINE_CHARACTERS and cue.end - cue.start <= CUE_SECONDS for cue in found)
        times = [time for cue in found for time in (cue.start, cue.end)]
        assert times == sorted(times) and times[-1] == pytest.approx(said.end)
    assert not list(cues(Utterance(0, 1, " ")))
    (cue,) = cues(Utterance(1, 2, "你好世界", (TimedWord("你好", 1, 1.5), TimedWord("世界", 1.5, 2))))
    assert cue == Cue(1, 2, "你好世界"), "spaces are the engine's own"
    (cue,) = cues(Utterance(1, 2, "it's 5", (TimedWord("its", 1, 1.5), TimedWord("five", 1.5, 2))))
    assert cue == Cue(1, 2, "it's 5"), "an engine may write words in two ways"


@given(text=st.text("aé 你。, -", min_size=1, max_size=300), is_timed=st.booleans())
def test_no_cue_has_more_than_two_lines(text: str, is_timed: bool) -> None:
    words = tuple(
        TimedWord(word, 0.1 * i, 0.1 * i + 0.1) for i, word in enumerate(re.findall(r"[你。]|[^\s你。]+", text))
    )
    found = list(cues(Utterance(0, 20, text, words if is_timed else ())))
    assert "".join("".join(cue.text for cue in found).split()) == "".join(text.split())
    for cue in found:
        lines = srt(1, cue).splitlines()[2:-1]
        assert all(len(line) <= LINE_CHARACTERS for line in lines)
        assert len(lines) <= 2 or max(map(len, re.findall(r"[^\s你]+", text))) > LINE_CHARACTERS


def test_where_no_spaces_are_cues_end_between_letters() -> None:
    text = "今天天气很好，我们去公园散步吧。" * 8
    found = list(cues(Utterance(0, 24, text)))
    assert "".join(cue.text for cue in found) == text and len(found) >= 4
    assert all(cue.end - cue.start <= CUE_SECONDS + 1e-6 and cue.text[0] not in "，。" for cue in found)


def test_subtitles_are_written_as_their_formats_ask() -> None:
    (cue,) = cues(Utterance(3661.5, 3661.5, "Salt & <pepper> --> now, and more than one line can hold, surely."))
    assert srt(7, cue) == (
        "7\n01:01:01,500 --> 01:01:01,501\n"
        "Salt & <pepper> -> now, and more than one\nline can hold, surely.\n\n"
    )  # fmt: skip
    assert vtt(cue) == (
        "01:01:01.500 --> 01:01:01.501\n"
        "Salt &amp; &lt;pepper&gt; --&gt; now, and more than one\nline can hold, surely.\n\n"
    )  # fmt: skip


def test_a_recogniser_is_given_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps Python's lock while it hears would hold up everybody else in the process."""
    recogniser, sizes = Recogniser(), list[int]()
    push = Listening.push

    def watched(self: Listening, pcm: np.ndarray) -> Transcript | None:
        sizes.append(len(pcm))
        return push(self, pcm)

    monkeypatch.setattr(Listening, "push", watched)
    recogniser.said = ["one two three"]
    (said,) = transcribe([recording(0.5, 2.0, 1.0)], recogniser, detector=LevelDetector())
    assert said.text == "one two three"
    assert max(sizes) <= recogniser.rate / 10 and sum(sizes) == recogniser.n_samples[0] > 2 * recogniser.rate
