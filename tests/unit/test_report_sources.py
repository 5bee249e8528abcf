"""Files that a report is made from: told apart by what is in them, and a broken one named beside the others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from personaplex.audio import read_channels
from personaplex.cli.main import main
from personaplex.errors import AudioError, PersonaPlexError, UsageError
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import share
from personaplex.live.recording import Recording
from personaplex.report.recorded import Said
from personaplex.report.sources import Sources
from personaplex.steps import StepMeasure
from tests.unit.test_report_speech import EXACT, sound

AGENT, USER = sound(6, (3, 5)), sound(6, (0.5, 2.5))


def record(path: Path, *, steps: bool = True, words: int = 6, about: dict[str, Any] | None = None) -> Path:
    """What `talk --record` writes."""
    recording = Recording(path, {"left": "agent", "right": "user", "model": "tiny", **(about or {})})
    recording.add(AGENT, USER)
    for i in range(words):
        recording.note(3 + 0.3 * i, "agent text", text=f" word{i}")
    recording.note(0.4, "user text", text="hello")
    recording.note(4.9, "interrupted")
    for i in range(10 if steps else 0):
        recording.step(0.08 * i, StepMeasure(10.0 + i, 0.5, 1.0, 1.5))
    recording.close(seed=3, step_ms_p50=14.0)
    return path


def read(*paths: Path, agent: Any = None) -> Sources:
    sources = Sources()
    sources.read(paths, agent)
    return sources


def edit(path: Path, **changes: object) -> None:
    entry = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in entry.items() if value is not ...}))


@pytest.mark.parametrize("name", ["call.wav", "call.json"])
def test_a_recording_by_either_of_its_files(tmp_path: Path, name: str) -> None:
    record(tmp_path / "call.wav")
    (one,) = read(tmp_path / name).conversations
    assert (one.name, one.source, one.about["seed"]) == ("call", "talk --record", 3)
    assert np.allclose(one.agent, AGENT, atol=1e-4) and np.allclose(one.user, USER, atol=1e-4)
    assert one.text == "word0 word1 word2 word3 word4 word5" and list(one.heard) == [Said(0.4, "hello")]
    assert [mark.what for mark in one.marks] == ["interrupted"]
    assert one.steps is not None and one.steps.measures[9] == StepMeasure(19, 0.5, 1, 1.5)
    assert (list(one.lacks), list(one.doubts)) == ([], [])


def test_both_files_of_a_recording_are_one_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "call.wav")
    record(tmp_path / "other.wav")
    monkeypatch.chdir(tmp_path)
    names = ("call.json", "call.wav", tmp_path / "call.json", "other.wav", "other.wav")
    assert [one.name for one in read(*[Path(name) for name in names]).conversations] == ["call", "other"]
    assert [one.name for one in read(Path("call.wav"), Path("call.json")).conversations] == ["call"]


def test_a_comparison_is_no_source_and_in_a_folder_no_trouble(tmp_path: Path) -> None:
    record(tmp_path / "call.wav")
    (tmp_path / "two.json").write_text('{"kind": "comparison", "of": "codec", "rows": []}')
    found = read(tmp_path)
    assert len(found.conversations) == 1 and not found.failures
    with pytest.raises(UsageError, match=r"two.json is a comparison, .* name the results"):
        read(tmp_path / "two.json")


def test_an_older_recording_says_what_it_lacks(tmp_path: Path) -> None:
    record(tmp_path / "call.flac", steps=False)
    (one,) = read(tmp_path / "call.flac").conversations
    assert one.steps is None
    assert "by an earlier version (step_ms_p50 14.0)" in one.lacks[0]
    record(tmp_path / "cascade.wav", steps=False, words=0, about={"model": "cascade"})
    (one,) = read(tmp_path / "cascade.json").conversations
    assert "no text" in one.lacks[0] and "a cascade has no such steps" in one.lacks[1]


def test_swapped_channels_are_doubted_and_can_be_said(tmp_path: Path) -> None:
    record(tmp_path / "call.wav")
    pcm, rate = soundfile.read(tmp_path / "call.wav")
    soundfile.write(tmp_path / "call.wav", pcm[:, ::-1], rate)
    (one,) = read(tmp_path / "call.wav").conversations
    assert "channels look swapped" in one.doubts[0]
    (right,) = read(tmp_path / "call.wav", agent="right").conversations
    assert right.doubts == () and np.allclose(right.agent, AGENT, atol=1e-4)
    edit(tmp_path / "call.json", left="user", right="agent")
    (told,) = read(tmp_path / "call.wav").conversations
    assert told.doubts == () and np.allclose(told.user, USER, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 24_000, 44_100, 48_000])
def test_channels_stay_apart_at_any_rate(tmp_path: Path, rate: int) -> None:
    t = np.arange(2 * rate) / rate
    pcm = np.stack([0.5 * np.sin(2 * np.pi * 200 * t), np.zeros_like(t)], axis=1)
    soundfile.write(tmp_path / "a.wav", pcm, rate)
    found = read_channels(tmp_path / "a.wav")
    assert found.shape == (2 * 24_000, 2) and not found[:, 1].any()
    assert float(np.abs(found[:, 0]).max()) == pytest.approx(0.5, abs=0.02)
    (one,) = read(tmp_path / "a.wav").conversations
    assert "taken to be left" in one.doubts[0] and len(one.agent) == 2 * 24_000


def test_samples_that_are_no_numbers_are_found_in_one_channel(tmp_path: Path) -> None:
    pcm = np.zeros((24_000, 2), np.float32)
    pcm[12_000, 1] = np.nan
    soundfile.write(tmp_path / "a.wav", pcm, 24_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"not numbers .* at 0\.500 s"):
        read(tmp_path / "a.wav")


def respond_json(folder: Path, **changes: object) -> Path:
    """What `respond --json` prints, with its two recordings: 16 kHz in, 24 kHz out."""
    soundfile.write(folder / "question.wav", USER[: 4 * 24_000][::3].repeat(2)[: 4 * 16_000], 16_000)
    soundfile.write(folder / "answer.wav", AGENT, 24_000)
    entry = {
        "input": "elsewhere/question.wav", "output": "answer.wav", "text": "word one",
        "texts": [[40, " word"], [44, " one"]], "tokens": [3, 5], "seed": 7, "model": "tiny",
    }  # fmt: skip
    path = folder / "printed.json"
    path.write_text(json.dumps(entry | changes))
    return path


def test_what_respond_printed_finds_its_recordings_beside_it(tmp_path: Path) -> None:
    (one,) = read(respond_json(tmp_path)).conversations
    assert (one.source, one.seconds, one.about["seed"]) == ("respond --json", 6.0, 7)
    assert [said.text for said in one.said] == [" word", " one"]
    assert [said.at for said in one.said] == pytest.approx([3.2, 3.52])
    assert one.user[: 4 * 24_000].any() and not one.user[4 * 24_000 :].any(), "what is shorter is padded"
    assert any("earlier version" in lack for lack in one.lacks)
    (tmp_path / "question.wav").unlink()
    (one,) = read(tmp_path / "printed.json").conversations
    assert "the user's side" in one.lacks[0] and not one.user.any()
    (tmp_path / "answer.wav").unlink()
    with pytest.raises(AudioError, match="neither there nor beside"):
        read(tmp_path / "printed.json")


def test_a_servers_session_is_its_transcript_and_its_sound(tmp_path: Path) -> None:
    session = {"id": "s1", "kind": "realtime", "persona": "assistant", "created": 1000.0, "title": None}
    said = [
        {"role": "user", "content": "how late", "persona": None, "at": 1003.8},
        {"role": "assistant", "content": "it is eight", "persona": None, "at": 1006.4},
    ]
    (tmp_path / "s1.json").write_text(json.dumps({"session": session, "messages": said}))
    with pytest.raises(AudioError, match="no sound of that name"):
        read(tmp_path / "s1.json")
    soundfile.write(tmp_path / "s1.wav", np.stack([AGENT, USER], axis=1), 24_000)
    (one,) = read(tmp_path / "s1.wav").conversations
    assert (one.source, one.text, one.heard[0].text) == ("serve", "it is eight", "how late ")
    assert one.said[0].at == pytest.approx(6.4 - 1.2 - 11 / 15), "its end is known, not its begin"
    assert any("written down" in lack for lack in one.lacks)


def test_one_broken_file_among_many_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    for i in range(3):
        record(tmp_path / f"call{i}.wav", steps=False)
    (tmp_path / "call1.wav").write_bytes((tmp_path / "call1.wav").read_bytes()[:20_000])
    Result("codec", {}, [share("x", [True])]).save(tmp_path / "codec.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "torn.json").write_text('{"kind": "codec", "rows": [')
    (tmp_path / "notes.txt").write_text("not looked at")
    Result("report", {}, []).save(tmp_path / "report.json")  # an earlier report in the same folder
    (tmp_path / "compared.json").write_text('{"kind": "comparison", "rows": [{"what": "x", "interval": [0, 1]}]}')
    found = read(tmp_path)
    assert [one.name for one in found.conversations] == ["call0", "call2"] and len(found.results) == 1
    assert [Path(failure.item).name for failure in found.failures] == ["call1.json", "other.json", "torn.json"]
    assert "cut short" in found.failures[0].reason and "not JSON" in found.failures[2].reason


def test_a_damaged_description_is_one_failure_and_not_two(tmp_path: Path) -> None:
    record(tmp_path / "good.wav")
    record(tmp_path / "bad.wav")
    (tmp_path / "bad.json").write_text("{")
    found = read(tmp_path)
    assert len(found.conversations) == len(found.failures) == 1


@pytest.mark.parametrize(
    "changes",
    [{"events": [{"at": "never"}]}, {"events": 3}, {"events": [[1]]}, {"events": None}, {"steps": 3},
     {"steps": {"at": [1]}}, {"events": [{"at": math.nan, "event": "agent text", "text": "x"}]},
     {"events": [{"at": -1, "event": "x"}]},
     {"steps": {"at": [math.inf], "ms": [1], "text": [1], "semantic": [1], "acoustic": [1]}}],
)  # fmt: skip
def test_a_damaged_recording_is_told_in_words(tmp_path: Path, changes: dict[str, object]) -> None:
    record(tmp_path / "call.wav")
    edit(tmp_path / "call.json", **changes)
    with pytest.raises(UsageError, match=r"call\.json is damaged"):
        read(tmp_path / "call.json")


@pytest.mark.parametrize(
    "entry",
    [{"reference": "x", "seconds": 1, "candidates": [{}]}, {"reference": "x", "seconds": "x", "candidates": []},
     {"session": {}, "messages": []}, {"input": "a", "output": "answer.wav", "tokens": [], "texts": [[1]], "text": ""}],
)  # fmt: skip
def test_other_damaged_files_are_told_in_words(tmp_path: Path, entry: dict[str, object]) -> None:
    respond_json(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(entry))
    soundfile.write(tmp_path / "a.wav", np.stack([AGENT, USER], axis=1), 24_000)
    with pytest.raises(UsageError, match=r"a\.json is damaged"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda f: f / "none.wav", AudioError, "does not exist"),
        (lambda f: f / "none.json", UsageError, "cannot read"),
        (lambda f: f, UsageError, "holds nothing to report on"),
        (lambda f: _write(f / "list.json", "[1]"), UsageError, "no JSON object"),
        (lambda f: _write(f / "deep.json", "[" * 100_000), UsageError, "not JSON"),
        (lambda f: _write(f / "some.json", '{"a": 1}'), UsageError, "none of what a report is made from"),
        (lambda f: _write(f / "bad.json", '{"kind": "x", "rows": 3}'), UsageError, "not the result of an evaluation"),
        (lambda f: _mono(f / "mono.wav"), AudioError, "has 1 channel; a conversation has two"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_alone_is_an_error_in_words(
    tmp_path: Path, make: Any, kind: type[PersonaPlexError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        read(make(tmp_path))


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _mono(path: Path) -> Path:
    soundfile.write(path, AGENT, 24_000)
    return path


@pytest.mark.parametrize(
    "damage",
    [{"rows": [{"what": "x", "value": "1", "interval": [0, 1], "n": 3}]}, {"items": [1]}, {"about": [1]},
     {"failures": [{"item": "a", "reason": 3}]}, {"rows": [{"what": 3, "value": 1, "interval": [0, 1], "n": 3}]},
     {"kind": 3}],
)  # fmt: skip
def test_a_result_with_texts_for_numbers_is_refused(
    tmp_path: Path, damage: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    Result("codec", {}, [share("x", [True])]).save(tmp_path / "a.json")
    edit(tmp_path / "a.json", **damage)
    with pytest.raises(UsageError, match="is damaged"):
        read(tmp_path / "a.json")
    assert main(["report", "--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 2


def test_nothing_at_all_that_can_be_read_ends_with_how_many(tmp_path: Path) -> None:
    _write(tmp_path / "a.json", "{}")
    _write(tmp_path / "b.json", "{}")
    with pytest.raises(UsageError, match=r"none of 2 files can be read; the first: .*a\.json"):
        read(tmp_path)


def test_texts_that_no_file_can_hold_do_not_stop_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of characters, zero bytes and markup, in what was said and in a file's name."""
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "call.wav", about={"prompt": "\x00<script>alert(1)</script>"})
    said = [{"at": 3.1, "event": "agent text", "text": "half \ud83d of one <b>\x00"}]
    edit(tmp_path / "call.json", events=said)
    (tmp_path / "torn\udcff.json").write_text("{")
    assert main(["report", ".", "-q", "-o", "out.html"]) == 0
    result, page = Result.load(tmp_path / "out.json"), (tmp_path / "out.html").read_text()
    assert result.items[0]["text"] == "half ? of one <b>\x00" and result.failures[0].item == "torn?.json"
    assert "<script" not in page and "&lt;b&gt;" in page and "alert(1)" in page


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        record(tmp_path / folder / "call.wav")
    found = read(tmp_path / "a", tmp_path / "b")
    assert [one.name for one in found.conversations] == ["call", "call (2)"]
    assert len(read(tmp_path / "a", tmp_path / "a" / "call.json").conversations) == 1, "named twice, read once"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to report on"),
        (["--audio", "a.wav"], "name it with --model"),
        (["call.wav", "--voice", "NATF2"], "--voice is for --model"),
        (["call.wav", "--seed", "0"], "--seed is for --model"),
        (["call.wav", "--text-temp", "0"], "--text-temp is for --model"),
        (["--compare", "a.json", "b.json", "--greedy"], "--greedy is for --model"),
        (["call.wav", "-o", "page.txt"], "an .html file"),
        (["call.wav", "-o", "call.html"], "go into call.json, which is there and is no report"),
        (["--compare", "a.json", "b.json", "call.wav"], "nothing else"),
        (["call.wav", "-o", "nowhere/a.html"], "does not exist"),
        (["--model", "nano", "--seed", "-1"], "seed"),
    ],
)
def test_wrong_usage_is_known_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "call.wav")
    before = (tmp_path / "call.json").read_bytes()
    assert main(["report", *arguments]) != 0
    assert words in capsys.readouterr().err
    assert (tmp_path / "call.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.json", "call.wav"]


def test_failures_are_in_the_page_the_json_and_the_denominator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "call.wav")
    _write(tmp_path / "b<r>oken.json", "{}")
    assert main(["report", ".", "-o", "out.html"]) == 0
    printed = capsys.readouterr()
    assert "left out: b<r>oken.json" in printed.err and "| step time |" in printed.out
    result = Result.load(tmp_path / "out.json")
    (failure,) = result.failures
    assert isinstance(failure, Failure) and failure.item == "b<r>oken.json"
    assert {row.n for row in result.rows if row.what == "conversations with signs of degenerate speech"} == {1}
    page = (tmp_path / "out.html").read_text()
    assert "Could not be read: 1" in page and "b&lt;r&gt;oken.json" in page and "b<r>oken" not in page
    (item,) = result.items
    (turn,) = item["turns"]  # of the user Silero's detector finds none: a tone is no voice
    assert turn["side"] == "agent" and turn["begin"] == pytest.approx(3, abs=EXACT)
    assert main(["report", ".", "-o", "out.html"]) == 0, "an earlier report may be written over, and is no source"
    assert len(Result.load(tmp_path / "out.json").failures) == 1
