"""A model talks through clips: sample beside sample, several at once, and what goes wrong with one is one failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from personaplex.audio import read_audio, write_audio
from personaplex.conversation import Event, Settings
from personaplex.errors import Closed, OutputError, PersonaPlexError
from personaplex.evaluate.duplex.clips import Clip, find_clips
from personaplex.evaluate.duplex.conversations import PROMPTS_BY_TASK, converse, talk_through
from personaplex.units import FRAME_SAMPLES
from tests.contract.scripted import Scripted
from tests.duplex.agents import Failing, Speaking, failures
from tests.duplex.folders import hum, overlap, put, turn
from tests.small import tiny_engine


@pytest.mark.parametrize("n_samples", [FRAME_SAMPLES, 10 * FRAME_SAMPLES + 1, 25 * FRAME_SAMPLES - 7, 100])
def test_the_answer_is_as_long_as_the_recording_and_in_its_place(n_samples: int) -> None:
    sound = hum(4)
    said = converse(Speaking(lambda _: sound), np.zeros(n_samples, np.float32), Settings())
    assert np.array_equal(said, sound[:n_samples])


@pytest.mark.parametrize("event, kind, told", failures(), ids=lambda value: type(value).__name__)
def test_an_answer_that_is_none_is_told(event: Event, kind: type[PersonaPlexError], told: str) -> None:
    with pytest.raises(kind, match=told):
        converse(Failing(event), hum(1), Settings())


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    for name in ("1", "2", "3", "4", "5"):
        put(tmp_path / "candor_turn_taking" / name, turn(1.0), user=hum(1, int(name)))
        (tmp_path / "candor_turn_taking" / name / "output.json").write_text("{}")
    return find_clips(tmp_path)


def as_itself(task: str) -> Settings:
    return Settings(prompt=task)


def test_every_clip_is_talked_through_with_its_own_seed_whatever_the_others_are(clips: list[Clip]) -> None:
    def by_seed(settings: Settings) -> np.ndarray:
        return hum(1, settings.seed or 0)

    agent = Speaking(by_seed)
    talked = talk_through(agent, clips, as_itself, seed=3, slots=2)
    assert talked.failures == [] and talked.sound_seconds == 5.0
    assert agent.most_at_once <= 2
    assert len({settings.seed for settings in agent.opened}) == 5
    first = read_audio(clips[2].results / "output.wav")
    assert not (clips[2].results / "output.json").exists(), "words of another answer"
    assert len(first) == 24_000
    talk_through(Speaking(by_seed), clips[2:3], as_itself, seed=3, slots=1)
    assert np.array_equal(read_audio(clips[2].results / "output.wav"), first)
    talk_through(Speaking(by_seed), clips[2:3], as_itself, seed=4, slots=1)
    assert not np.array_equal(read_audio(clips[2].results / "output.wav"), first)


def test_one_clip_that_cannot_be_heard_is_a_failure_and_the_rest_goes_on(clips: list[Clip]) -> None:
    (clips[1].folder / "input.wav").write_bytes(b"RIFF of old")
    before = (clips[1].results / "output.wav").read_bytes()
    told: list[str] = []
    talked = talk_through(Speaking(lambda _: hum(1)), clips, as_itself, seed=0, slots=2, say=told.append)
    assert [failure.item for failure in talked.failures] == ["candor_turn_taking/2"]
    assert "not a recording" in talked.failures[0].reason
    assert talked.sound_seconds == 4.0
    assert (clips[1].results / "output.wav").read_bytes() == before
    assert "talked through 5 of 5 clips" in told


def test_what_cannot_be_written_ends_it(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    elsewhere = find_clips(tmp_path, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        talk_through(Speaking(lambda _: hum(1)), elsewhere, as_itself, seed=0, slots=2)


def test_when_it_is_interrupted_no_more_conversations_are_begun(clips: list[Clip]) -> None:
    def interrupted(_: Settings) -> np.ndarray:
        raise KeyboardInterrupt

    agent = Speaking(interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk_through(agent, clips * 20, as_itself, seed=0, slots=1)
    assert len(agent.opened) < 100
    with pytest.raises(Closed):
        Scripted.open(agent)


def test_overlaps_are_talked_through_without_the_event_too(tmp_path: Path) -> None:
    clip = put(tmp_path / "data" / "user_interruption" / "1", overlap(0.2, 0.6), user=hum(1))
    write_audio(clip / "clean_input.wav", hum(1.5))
    (found,) = find_clips(tmp_path / "data", tmp_path / "out")
    talked = talk_through(Speaking(lambda _: hum(2)), [found], as_itself, seed=0, slots=1)
    assert talked.sound_seconds == 2.5
    assert len(read_audio(found.results / "clean_output.wav")) == 36_000
    assert found.results == tmp_path / "out" / "user_interruption" / "1"


def test_the_real_engine_gives_the_same_answer_alone_and_among_others(clips: list[Clip]) -> None:
    def settings(_: str) -> Settings:
        return Settings("VOICE0", PROMPTS_BY_TASK["turn"])

    with tiny_engine(2) as engine:
        talked = talk_through(engine, clips[:3], settings, seed=1, slots=2)
        assert talked.failures == []
        answers = [read_audio(clip.results / "output.wav") for clip in clips[:3]]
        assert all(len(answer) == 24_000 for answer in answers)
        talk_through(engine, clips[1:2], settings, seed=1, slots=1)
    assert np.array_equal(read_audio(clips[1].results / "output.wav"), answers[1])
    assert not np.array_equal(answers[0], answers[1])
