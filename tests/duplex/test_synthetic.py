"""The synthetic set: the same for a seed, as it says of itself, and who does right is told from who does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from personaplex.audio import read_audio, write_audio
from personaplex.errors import OutputError, SynthesisError, UsageError
from personaplex.evaluate.duplex import synthetic
from personaplex.evaluate.duplex.benchmark import evaluate, find_human
from personaplex.evaluate.duplex.clips import OVERLAPS, TASKS, Clip, find_clips
from personaplex.evaluate.duplex.scores import Scorer
from personaplex.evaluate.duplex.speech_spans import speech_spans
from personaplex.evaluate.duplex.synthetic import SUBSETS, make_set
from personaplex.evaluate.duplex.transcript import read_words, write_words
from personaplex.evaluate.result import Result
from personaplex.evaluate.row import Row
from personaplex.speech import AGENTS, say
from personaplex.units import SAMPLE_RATE

PER_SUBSET = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    make_set(folder, PER_SUBSET, 5)
    return folder


def truth(clip: Clip) -> dict[str, Any]:
    entry = json.loads((clip.folder / "ground_truth.json").read_text())
    assert isinstance(entry, dict)
    return entry


def level_db(pcm: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(pcm)) + 1e-12))


def between(pcm: np.ndarray, start: float, end: float) -> np.ndarray:
    return pcm[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def test_every_task_is_there_in_the_benchmarks_layout(made: Path) -> None:
    clips = find_clips(made)
    assert [clip.task for clip in clips] == [task for task in TASKS for _ in range(PER_SUBSET)]
    assert {clip.subset for clip in clips} == set(SUBSETS)
    for clip in clips:
        seconds = truth(clip)["seconds"]
        assert len(read_audio(clip.folder / "input.wav")) == pytest.approx(seconds * SAMPLE_RATE, abs=1)
        assert (clip.folder / "clean_input.wav").exists() == (clip.task in OVERLAPS)
    assert json.loads((made / "synthetic.json").read_text())["seed"] == 5


def test_a_seed_makes_the_same_clips_however_many_are_made(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    make_set(again, 1, 5, ["pause", "user backchannel"])
    assert sorted(path.name for path in again.iterdir()) == [
        "synthetic.json",
        "synthetic_pause_handling",
        "user_backchannel",
    ]
    for path in again.rglob("1/*"):
        assert path.read_bytes() == (made / path.relative_to(again)).read_bytes(), path
    make_set(tmp_path / "other", 1, 6, ["pause"])
    name = Path("synthetic_pause_handling") / "1" / "input.wav"
    assert (tmp_path / "other" / name).read_bytes() != (made / name).read_bytes()


def test_pauses_are_silent_and_speech_is_where_the_words_are(made: Path) -> None:
    for clip in find_clips(made, only=["pause"]):
        pcm, words = read_audio(clip.folder / "input.wav"), read_words(clip.folder / "transcription.json")
        ((start, end),) = truth(clip)["pauses"]
        assert 0.6 <= end - start <= 1.9
        assert level_db(between(pcm, start + 0.05, end - 0.05)) < -60
        assert all(word.end <= start + 0.001 or word.start >= end - 0.001 for word in words)
        assert level_db(between(pcm, words[0].start, words[0].end)) > -45
        assert truth(clip)["seconds"] - words[-1].end < 0.1, "who answers now is not heard any more"


def test_the_user_is_found_where_the_turn_ends_and_the_event_is(made: Path) -> None:
    for clip in find_clips(made, only=["turn", "interruption"]):
        end = clip.user_end() if clip.task == "turn" else clip.interruption().end
        spans = speech_spans(read_audio(clip.folder / "input.wav"))
        assert spans[-1].end == pytest.approx(end, abs=0.25)
    for clip in find_clips(made, only=OVERLAPS):
        event, clean = clip.event(), read_audio(clip.folder / "clean_input.wav")
        heard = between(read_audio(clip.folder / "input.wav"), *event)
        assert level_db(between(clean, *event)) < -60 < -50 < level_db(heard)
        words = read_words(clip.folder / "transcription.json")
        assert event.start - max(word.end for word in words if word.end < event.start) == pytest.approx(4.06, abs=0.05)


def test_backchannels_are_invited_after_clauses(made: Path) -> None:
    (first, *_) = find_clips(made, only=["backchannel"])
    human = find_human([first])[first.subset]
    assert sum(human["1"]) == pytest.approx(1)
    ends = {word.end for word in read_words(first.folder / "transcription.json")}
    for start, end in truth(first)["invited"]:
        assert min(abs(start - word_end) for word_end in ends) < 0.002
        assert human["1"][int((start + 0.4) / 0.2)] > 0
        assert end - start == pytest.approx(0.8)
    assert human["1"][: int(truth(first)["invited"][0][0] / 0.2) - 1] == [0] * (
        int(truth(first)["invited"][0][0] / 0.2) - 1
    )


def answered(root: Path, out: Path, when: str) -> Result:
    """What an agent scores that does right (`well`), says nothing, talks all the time, or answers other clips."""
    clips = find_clips(root, out)
    for i, clip in enumerate(clips):
        asked = clips[i ^ 1] if when == "shuffled" else clip  # the other of the two of its task
        agent = Agent(truth(clip)["seconds"])
        if when in ("well", "shuffled"):
            agent.do_right(asked)
        elif when == "always":
            agent.talk_on()
        clip.results.mkdir(parents=True)
        write_audio(clip.results / "output.wav", agent.pcm)
        write_words(clip.results / "output.json", agent.words)
    result = evaluate(clips, Scorer(unheard, "none", find_human(clips)), {})
    assert not result.failures
    return result


def unheard() -> NoReturn:
    raise AssertionError


class Agent:
    """Speaks as it is told, and knows its words."""

    def __init__(self, seconds: float) -> None:
        self.pcm = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        self.words: list[Any] = []

    def say(self, text: str, at: float) -> None:
        from personaplex.cascade.engine import TimedWord

        said, begin = say(AGENTS["NATF2"], text), round(at * SAMPLE_RATE)
        place = self.pcm[begin : begin + len(said.pcm)]
        place[:] = said.pcm[: len(place)]
        for word in said.words:
            start, end = (begin + word.start) / SAMPLE_RATE, (begin + word.end) / SAMPLE_RATE
            if end * SAMPLE_RATE <= len(self.pcm):
                self.words.append(TimedWord(word.text, start, end))

    def do_right(self, clip: Clip) -> None:
        if clip.task == "turn":
            self.say("that is a very good question", clip.user_end() + 0.3)
        elif clip.task == "interruption":
            self.say("of course here is what you wanted", clip.interruption().end + 0.3)
        elif clip.task == "backchannel":
            for start, _ in truth(clip)["invited"]:
                self.say("yeah", start + 0.1)

    def talk_on(self) -> None:
        while not self.words or self.words[-1].end < len(self.pcm) / SAMPLE_RATE - 3:
            self.say("and then we drove to the sea", self.words[-1].end if self.words else 0.0)


@pytest.fixture(scope="module")
def results(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    out = tmp_path_factory.mktemp("answers")
    root = out / "v1"
    for subset in SUBSETS[:4]:
        shutil.copytree(made / subset, root / subset)
    return {when: answered(root, out / when, when) for when in ("well", "silent", "always", "shuffled")}


@pytest.fixture(scope="module")
def scores(results: dict[str, Result]) -> dict[str, dict[str, Row]]:
    return {when: {row.what: row for row in result.rows} for when, result in results.items()}


def test_an_agent_that_does_right_has_the_right_numbers(scores: dict[str, dict[str, Row]]) -> None:
    well = scores["well"]
    for subset, rate in zip(SUBSETS[:4], (0, 0, 1, 1), strict=True):
        wanted = "higher" if rate else "lower"
        assert well[f"{subset}: takeover rate ({wanted} is better)"].value == rate, subset
    for subset in SUBSETS[2:4]:
        # 0.3 s, and the 30 ms of silence before a synthesised word.
        assert well[f"{subset}: latency of takeovers, s (lower is better)"].value == pytest.approx(0.33, abs=0.005)
    assert well["synthetic_backchannel: JSD of their times to people's (lower is better; 1 for none)"].value < 0.45


@pytest.mark.parametrize("when, rate", [("silent", 0), ("always", 1)])
def test_an_agent_that_does_always_the_same_is_right_in_half_of_it(
    scores: dict[str, dict[str, Row]], when: str, rate: int
) -> None:
    rows = scores[when]
    assert [row.value for what, row in rows.items() if "takeover rate" in what] == [rate] * 4
    early = [row.value for what, row in rows.items() if "begun before the user's end" in what]
    assert early[0] == 1 if when == "always" else np.isnan(early[0])
    if when == "always":
        assert rows["synthetic_turn_taking: latency of takeovers, s (lower is better)"].value == 0


def test_answers_to_other_clips_score_worse(scores: dict[str, dict[str, Row]], results: dict[str, Result]) -> None:
    jsd = "synthetic_backchannel: JSD of their times to people's (lower is better; 1 for none)"
    assert scores["shuffled"][jsd].value > scores["well"][jsd].value + 0.1
    well, shuffled = (
        [item["latency"] for item in results[when].items if item["task"] == "turn"] for when in ("well", "shuffled")
    )
    assert well == pytest.approx([0.33, 0.33], abs=0.005)
    # One clip's answer is as much too early as the other's is too late: the mean does not tell.
    assert min(shuffled) < 0.3 and max(shuffled) > 0.36


def test_a_set_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        make_set(tmp_path / "full", 1, 0)
    with pytest.raises(UsageError, match="1 or more"):
        make_set(tmp_path / "none", 0, 0)
    with pytest.raises(OutputError, match="cannot write"):
        make_set(tmp_path / "full" / "thesis.txt" / "set", 1, 0)

    def fails(*_: object) -> NoReturn:
        raise SynthesisError("no voice left")

    monkeypatch.setattr(synthetic, "_write_json", fails)
    with pytest.raises(SynthesisError):
        make_set(tmp_path / "half", 1, 0, ["pause"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_without_flite_espeak_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_espeak(speaker: Any, text: str) -> Any:
        if speaker.engine == "flite":
            raise SynthesisError("flite is not here")
        return say(speaker, text)

    monkeypatch.setattr(synthetic, "say", only_espeak)
    synthetic._synthesiser.cache_clear()
    try:
        make_set(tmp_path / "set", 1, 0, ["turn"])
    finally:
        synthetic._synthesiser.cache_clear()
    assert json.loads((tmp_path / "set" / "synthetic.json").read_text())["synthesiser"] == "espeak"
    (clip,) = find_clips(tmp_path / "set")
    assert truth(clip)["speaker"].startswith("espeak")
