"""Degenerate speech on hand-made cases: each gives exactly its number, and exactly its signs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex.audio import pcm16, read_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.errors import AudioError
from personaplex.evaluate.degeneracy import Measures, Sign, measure, signs
from personaplex.models.mimi import Mimi
from personaplex.speech import AGENTS, say
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

ROOT = Path(__file__).parents[2]
SECONDS = 4
FRAMES = 50


def kinds(found: list[Sign]) -> set[str]:
    return {sign.kind for sign in found}


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_audio(ROOT / "examples" / "question.wav")


@pytest.fixture(scope="module")
def nano_codec() -> Mimi:
    return ModelFolder(resolve("nano")).load_mimi()


def tone(seconds: float = SECONDS) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


def noise(seconds: float = SECONDS) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32)


def varied_codes(n: int = FRAMES) -> np.ndarray:
    return np.arange(8 * n).reshape(8, n)


def test_speech_shows_no_sign(speech: np.ndarray) -> None:
    found = measure(speech, text="hello can you tell me what time you open on sunday please")
    assert signs(found) == []
    assert 0 < found.flatness < 0.2 and found.energy_cv > 0.3 and found.silence < 0.5
    assert found.word_loop == 1 and found.unique_words == pytest.approx(11 / 12)  # "you" twice


def test_samples_of_16_bits_measure_the_same(speech: np.ndarray) -> None:
    floats, whole = measure(speech), measure(pcm16(speech))
    assert whole.silence == floats.silence and whole.energy_cv == pytest.approx(floats.energy_cv, rel=1e-3)


@pytest.mark.parametrize("name", ["NATF1", "NATM0", "VARM3"])
def test_speech_that_went_through_a_codec_shows_no_sign(name: str, nano_codec: Mimi) -> None:
    text = "we open at seven and we close at nine the lamp costs forty dollars what else can i do for you"
    spoken = np.pad(say(AGENTS[name], text).pcm, FRAME_SAMPLES)
    spoken = spoken[: len(spoken) // FRAME_SAMPLES * FRAME_SAMPLES]
    codes = nano_codec.encode(mx.array(spoken)[None])
    found = measure(np.array(nano_codec.decode(codes))[0], codes=np.array(codes)[0], text=text)
    assert signs(found) == []
    assert found.code_entropy > 3 and found.flatness < 0.25 and found.energy_cv > 0.2, "and is not near any"


def test_silence_is_silence_and_nothing_else() -> None:
    found = measure(np.zeros(FRAMES * FRAME_SAMPLES, np.float32), codes=np.ones((8, FRAMES), int))
    assert found.silence == 1 and math.isnan(found.energy_cv) and math.isnan(found.flatness)
    assert found.same_code == 0 and math.isnan(found.code_entropy), "codes of silence repeat, and may"
    assert kinds(signs(found)) == {"silence"}


def test_silence_counts_from_19_frames_of_20() -> None:
    sound = np.zeros(100 * FRAME_SAMPLES, np.float32)
    sound[: 5 * FRAME_SAMPLES] = tone(1)[: 5 * FRAME_SAMPLES] * np.repeat([1, 2, 3, 2, 1], FRAME_SAMPLES)
    assert measure(sound).silence == pytest.approx(0.95)
    assert kinds(signs(measure(sound))) == {"silence"}
    sound[5 * FRAME_SAMPLES : 6 * FRAME_SAMPLES] = sound[:FRAME_SAMPLES]
    assert measure(sound).silence == pytest.approx(0.94)
    assert signs(measure(sound)) == []


def test_noise_is_flat() -> None:
    found = measure(noise())
    assert found.flatness > 0.9
    assert kinds(signs(found)) == {"noise", "monotony"}


def test_a_second_of_noise_in_speech_is_found(speech: np.ndarray) -> None:
    found = signs(measure(np.concatenate([speech, noise(1.04)])))
    assert kinds(found) == {"noise"}


def test_a_tone_is_monotonous() -> None:
    found = measure(tone())
    assert found.energy_cv < 0.01 and found.flatness < 0.01
    assert kinds(signs(found)) == {"monotony"}


def test_numbers_that_are_none(speech: np.ndarray) -> None:
    broken = speech.copy()
    broken[100] = np.nan
    found = measure(broken)
    assert not found.is_finite and kinds(signs(found)) == {"not finite"}


def test_clipping(speech: np.ndarray) -> None:
    found = measure(np.clip(50 * speech, -1, 1))
    assert found.clipped > 0.1 and "clipping" in kinds(signs(found))
    assert measure(speech).clipped == 0


def test_one_code_for_21_frames_is_one_too_many(speech: np.ndarray) -> None:
    loud = noise()  # every frame is heard
    codes = varied_codes()
    codes[0, 5:25] = 7
    assert measure(loud, codes=codes).same_code == 20
    assert "same code" not in kinds(signs(measure(loud, codes=codes)))
    codes[0, 25] = 7
    assert measure(loud, codes=codes).same_code == 21
    assert "same code" in kinds(signs(measure(loud, codes=codes)))


def test_a_loop_of_codes() -> None:
    codes = varied_codes()
    codes[:, 10:20], codes[:, 20:30] = codes[:, :10], codes[:, :10]
    assert measure(noise(), codes=codes).code_loop == 30
    assert "code loop" in kinds(signs(measure(noise(), codes=codes)))
    codes[3, 20] += 1  # said again with another acoustic code, it is not the same
    assert measure(noise(), codes=codes).code_loop == 0


def test_entropy_of_codes_in_their_poorest_two_seconds() -> None:
    codes = varied_codes()
    assert measure(noise(), codes=codes).code_entropy == pytest.approx(math.log2(25))
    codes[0, :25] = np.tile([1, 2, 3], 9)[:25]
    found = measure(noise(), codes=codes)
    assert found.code_entropy == pytest.approx(math.log2(3), abs=0.01)
    assert "few codes" in kinds(signs(found))


def test_codes_count_only_where_the_agent_is_heard() -> None:
    sound, codes = noise(), varied_codes()
    sound[10 * FRAME_SAMPLES : 45 * FRAME_SAMPLES] = 0
    codes[:, 10:45] = 7
    found = measure(sound, codes=codes)
    assert found.same_code == 1 and found.code_loop == 0


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", 0),
        ("we open at seven", 1),
        ("yes yes yes", 3),
        ("no no no no we do", 4),
        ("i said thank you thank you thank you thank you bye", 4),
        ("seven, eight, nine. Seven, eight, nine.", 2),
    ],
)
def test_a_loop_of_words(text: str, times: int, speech: np.ndarray) -> None:
    found = measure(speech, text=text)
    assert found.word_loop == times
    assert ("word loop" in kinds(signs(found))) == (times > 3)


def test_few_different_words(speech: np.ndarray) -> None:
    found = measure(speech, text="a b a b b a a b b a b a")
    assert found.unique_words == pytest.approx(1 / 6)
    assert "few words" in kinds(signs(found))
    assert math.isnan(measure(speech, text="a a a").unique_words)


def test_a_sign_says_its_number_and_what_was_expected() -> None:
    (sign,) = signs(measure(tone()))
    assert sign.reason == "level varies by 0.00; at least 0.1 expected"


def test_measures_are_json(speech: np.ndarray) -> None:
    entry = measure(speech).as_json()
    assert set(entry) == {field.name for field in dataclasses.fields(Measures)}
    assert json.loads(json.dumps(entry))["silence"] == entry["silence"]


@pytest.mark.parametrize("sound", [np.zeros(0), np.zeros((10, 2))])
def test_what_is_no_recording_is_refused(sound: np.ndarray) -> None:
    with pytest.raises(AudioError, match=r"samples \[S\]"):
        measure(sound)


def test_codes_of_another_recording_are_refused() -> None:
    with pytest.raises(AudioError, match="expected"):
        measure(noise(), codes=varied_codes(40))


def test_numbers_and_curled_apostrophes_are_words(speech: np.ndarray) -> None:
    assert kinds(signs(measure(speech, text="7 " * 12))) == {"word loop", "few words"}
    curled, straight = (measure(speech, text=f"don{mark}t go " * 3) for mark in "\u2019'")
    assert curled == straight
