"""Recognisers that hear whole utterances, and faster-whisper at work with random weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import soxr

from personaplex.cascade.engine import Recogniser, TimedWord, Transcript
from personaplex.cascade.registry import GROUP, default_recogniser, find_engines, open_recogniser
from personaplex.cascade.whole import LONGEST_SECONDS, RATE, WholeUtterance
from personaplex.errors import EngineError, UsageError
from personaplex.speech import AGENTS, say
from personaplex.units import SAMPLE_RATE
from tests.whisper_model import LANGUAGE, WORDS, write_whisper


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recogniser]:
    recogniser = open_recogniser(f"faster-whisper:{write_whisper(tmp_path_factory.mktemp('whisper'))}")
    yield recogniser
    recogniser.close()


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_faster_whisper_hears_words_their_times_and_the_language(whisper: Recogniser) -> None:
    assert whisper.rate == RATE and {"en", "de", "ja"} <= set(whisper.languages)
    listening = whisper.listen()
    assert [listening.push(noise(0.5)) for _ in range(4)] == [None] * 4
    found = listening.finish()
    assert found.text == " ".join(WORDS) and found.language == LANGUAGE
    assert tuple(word.text for word in found.words) == WORDS
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times) and 0 <= times[0] < times[-1] <= 2.0
    assert listening.finish().text == "" and listening.push(noise(1)) is None, "it is over"
    asked = whisper.listen("en")
    asked.push(noise(2))
    assert asked.finish().language == "en"


def test_faster_whisper_hears_nothing_in_nothing(whisper: Recogniser) -> None:
    assert whisper.listen().finish() == Transcript("")
    dropped = whisper.listen()
    dropped.push(noise(1))
    dropped.close()
    dropped.close()
    assert dropped.finish() == Transcript("")


def test_speech_that_ends_with_its_recording_is_heard() -> None:
    """PocketSphinx hears nothing at all in some sentences that no silence follows."""
    spoken = say(AGENTS["NATM0"], "hello there what time do you open")
    pcm = soxr.resample(spoken.pcm[: spoken.words[-1].end], SAMPLE_RATE, RATE)
    recogniser = open_recogniser("pocketsphinx")
    listening = recogniser.listen()
    for at in range(0, len(pcm), RATE // 10):
        listening.push(pcm[at : at + RATE // 10])
    assert "open" in listening.finish().text.split()
    recogniser.close()


def test_faster_whisper_serves_conversations_at_once(whisper: Recogniser) -> None:
    def hear(seconds: float) -> str:
        listening = whisper.listen()
        listening.push(noise(seconds))
        return listening.finish().text

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(hear, (1.0, 2.0, 3.0))) == {" ".join(WORDS)}


def test_what_faster_whisper_cannot_do_is_one_line(whisper: Recogniser, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"faster-whisper .* does not hear 'xx'; it hears af, am, .*, de, "):
        whisper.listen("xx")
    with pytest.raises(EngineError, match=r"cannot load the model 'huge': .*; name a size \(tiny, ") as error:
        open_recogniser("faster-whisper:huge")
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError, match=f"cannot load the model '{tmp_path}': Unable to open file 'model.bin'"):
        open_recogniser(f"faster-whisper:{tmp_path}")


def test_a_very_long_utterance_is_heard_piece_by_piece() -> None:
    heard: list[int] = []

    def hear(pcm: np.ndarray) -> Transcript:
        heard.append(len(pcm))
        return Transcript(f"part {len(heard)}", (TimedWord("part", 1.0, 2.0),), "en")

    listening = WholeUtterance(hear)
    minute = np.zeros(60 * RATE, np.float32)
    assert [listening.push(minute) is None for _ in range(5)] == [True, False, True, False, True]
    found = listening.finish()
    assert heard == [LONGEST_SECONDS * RATE, LONGEST_SECONDS * RATE, 60 * RATE]
    assert found.text == "part 1 part 2 part 3" and found.language == "en"
    assert [word.start for word in found.words] == [1.0, 121.0, 241.0]


def test_engines_that_need_a_mac_say_what_was_not_tried() -> None:
    engines = find_engines("recogniser")
    assert {"pocketsphinx", "faster-whisper", "mlx-whisper", "parakeet-mlx", "qwen3-asr"} <= set(engines)
    for name in ("mlx-whisper", "parakeet-mlx", "qwen3-asr"):
        assert "not run with real weights" in engines[name].remark
        lack = engines[name].missing()
        assert lack is None or lack.endswith("is not installed")
        with pytest.raises(UsageError, match="unexpected keyword argument"):
            engines[name].open(colour="blue")


@pytest.mark.parametrize(
    ("platform", "repo", "file", "name"),
    [
        ("linux", "Systran--faster-whisper-base", "model.bin", "faster-whisper"),
        ("linux", "mlx-community--parakeet-tdt-0.6b-v3", "model.safetensors", "pocketsphinx"),
        ("darwin", "mlx-community--parakeet-tdt-0.6b-v3", "model.safetensors", "parakeet-mlx"),
        ("darwin", "mlx-community--parakeet-tdt-0.6b-v3", "config.json", "pocketsphinx"),
        ("darwin", "mlx-community--whisper-large-v3-turbo", "weights.safetensors", "mlx-whisper"),
        ("darwin", "mlx-community--whisper-large-v3-turbo", "config.json", "pocketsphinx"),
        ("darwin", "Systran--faster-whisper-base", "model.bin", "pocketsphinx"),
    ],
)
def test_the_default_is_what_hears_well_and_needs_no_download(
    platform: str, repo: str, file: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("personaplex.cascade.engine._is_there", lambda module: True)
    assert default_recogniser() == "pocketsphinx", "nothing was downloaded yet"
    repository = Path(os.environ["HF_HUB_CACHE"]) / f"models--{repo}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / file).touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert default_recogniser() == name
    monkeypatch.setattr("personaplex.cascade.engine._is_there", lambda module: module == "pocketsphinx")
    assert default_recogniser() == "pocketsphinx", "the package is not installed"


def test_a_broken_package_does_not_keep_the_default_from_hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [EntryPoint(name, "nowhere.at_all:X", GROUP) for name in ("faster-whisper", "parakeet-mlx", "mlx-whisper")]
    monkeypatch.setattr("personaplex.cascade.registry.entry_points", lambda group: broken)
    assert default_recogniser() == "pocketsphinx"
