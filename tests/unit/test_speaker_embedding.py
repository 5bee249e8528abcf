"""What tells speakers apart: formants and pitch of made vowels, embeddings by name, from modules and from networks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from personaplex.errors import EngineError, UsageError
from personaplex.evaluate.voices.embedding import EMBEDDINGS, cosine, embedded, find_embedding
from personaplex.speech import AGENTS, say
from personaplex.speech.formants import formants
from personaplex.speech.identity import pitch, pitches
from tests.vowels import RATE, vowel


@pytest.mark.parametrize(
    ("hz", "at"),
    [(120, (280, 2250, 2890)), (220, (310, 2790, 3310)), (130, (660, 1720, 2410)), (110, (300, 870, 2240))],
)
def test_formants_are_where_the_resonances_are(hz: int, at: tuple[float, ...]) -> None:
    # Above 3 kHz a vocal tract has more of them, which shape the slope.
    sound = vowel(hz, (*at, 3600, 4500))
    # Between two harmonics nothing says where the resonance is.
    assert np.all(np.abs(formants(sound) - at) < np.maximum(hz / 4, 0.05 * np.array(at)))
    assert pitch(sound) == pytest.approx(hz, rel=0.01) and np.allclose(pitches(sound), hz, rtol=0.02)


def test_what_is_not_voiced_has_neither_formants_nor_pitch() -> None:
    noise = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    for sound in (noise, np.zeros(RATE, np.float32), np.zeros(100, np.float32)):
        assert not formants(sound).any() and not len(pitches(sound)) and pitch(sound) == 0


@pytest.fixture(scope="module")
def said() -> dict[str, list[np.ndarray]]:
    texts = ("good morning this is the bakery", "we close at half past seven today")
    return {name: [say(AGENTS[name], text).pcm for text in texts] for name in ("NATF0", "NATM2", "VARM1", "NATF1")}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_one_voice_is_more_like_itself_than_like_others(name: str, said: dict[str, list[np.ndarray]]) -> None:
    embedding = find_embedding(name)
    vectors = {voice: [embedded(embedding, pcm) for pcm in clips] for voice, clips in said.items()}
    for voice, (first, second) in vectors.items():
        likeness = {other: embedding.similarity(second, clips[0]) for other, clips in vectors.items()}
        assert max(likeness, key=lambda other: likeness[other]) == voice, likeness
        assert embedding.similarity(first, first) == 1 and 0 < min(likeness.values()) < 1


def test_the_spreads_are_those_between_sentences_of_a_voice() -> None:
    texts = (
        "good morning this is the bakery",
        "we close at half past seven today",
        "my name is anna and i can help you",
    )
    simple: list[np.ndarray] = []
    statistics: list[np.ndarray] = []
    for speaker in list(AGENTS.values())[::2]:
        clips = [say(speaker, text).pcm for text in texts]
        for found, name in ((simple, "simple"), (statistics, "statistics")):
            a, b, c = (embedded(find_embedding(name), pcm) for pcm in clips)
            found += [a - b, b - c, a - c]
    parts = np.split(np.stack(simple), [1, 33], axis=1)
    of_simple = [float(np.sqrt(np.mean(np.square(part)))) for part in parts]
    of_statistics = np.sqrt(np.mean(np.square(np.stack(statistics)), axis=0))
    for measured, name in ((of_simple, "simple"), (of_statistics, "statistics")):
        ratio = np.array(measured) / EMBEDDINGS[name].SPREADS  # type: ignore[attr-defined]
        assert np.all((ratio > 0.5) & (ratio < 2)), ratio


def test_half_is_a_typical_distance_within_a_voice() -> None:
    statistics = find_embedding("statistics")
    voice = np.array([7.0, 2.0, 9.0, 10.5, 11.3])
    spreads = np.array(EMBEDDINGS["statistics"].SPREADS)  # type: ignore[attr-defined]
    assert statistics.similarity(voice, voice + spreads) == pytest.approx(0.5)
    assert statistics.similarity(voice, voice - 3 * spreads) == pytest.approx(0.25)


def test_statistics_are_octaves_and_semitones() -> None:
    sound = np.concatenate([vowel(100, (500, 1500, 2500)), vowel(200, (500, 1500, 2500))])
    log2_pitch, apart, *_ = embedded(find_embedding("statistics"), sound)
    assert apart == pytest.approx(12, abs=0.2) and 2**log2_pitch == pytest.approx(150, abs=55)
    assert not embedded(find_embedding("statistics"), np.zeros(RATE, np.float32)).any()


def mean_and_length(pcm: np.ndarray) -> np.ndarray:
    return np.array([float(np.mean(pcm)), len(pcm)])


class Constant:
    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        return np.ones(2)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float:
        return 0.25


NOT_CALLABLE = 3


def broken(pcm: np.ndarray) -> np.ndarray:
    raise ValueError("too short for me")


HERE = "tests.unit.test_speaker_embedding"


def test_an_embedding_may_come_from_any_module() -> None:
    assert find_embedding(f"{HERE}:Constant").similarity(np.ones(2), np.zeros(2)) == 0.25
    by_cosine = find_embedding(f"{HERE}:mean_and_length")
    assert embedded(by_cosine, np.ones(7)).tolist() == [1, 7]
    assert by_cosine.similarity(np.array([1.0, 0]), np.array([1.0, 1])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.zeros(2), np.ones(2)) == 0


@pytest.mark.parametrize(
    ("choice", "error", "says"),
    [
        ("ecapa", UsageError, "there are simple, statistics"),
        (":x", UsageError, "unknown embedding"),
        ("no_such_module:x", EngineError, "cannot be loaded"),
        (f"{HERE}:missing", EngineError, "cannot be loaded"),
        (f"{HERE}:NOT_CALLABLE", UsageError, "is int"),
        ("missing.onnx", EngineError, "is no file"),
    ],
)
def test_embeddings_that_there_are_not(choice: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        find_embedding(choice)


@pytest.mark.parametrize("gives", [np.array([1.0, math.nan]), np.ones((2, 2)), np.zeros(0), np.float64(3)])
def test_what_is_no_vector_of_numbers_is_refused(gives: np.ndarray) -> None:
    with pytest.raises(EngineError, match="expected a vector"):
        embedded(Gives(gives), np.ones(4))
    with pytest.raises(EngineError, match="too short for me"):
        embedded(find_embedding(f"{HERE}:broken"), np.ones(4))


class Gives(Constant):
    def __init__(self, what: np.ndarray) -> None:
        self.what = what

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        return self.what


def network(path: Path) -> Path:
    """`logits` is the samples' number; `embeddings` their energy, their number, that of the mask, and their mean."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Mul", ["samples", "samples"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axes"], ["energy"], keepdims=1),
        helper.make_node("Sub", ["samples", "samples"], ["noughts"]),
        helper.make_node("Exp", ["noughts"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axes"], ["length"], keepdims=1),
        helper.make_node("Cast", ["mask"], ["mask_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask_float", "axes"], ["masked"], keepdims=1),
        helper.make_node("ReduceMean", ["samples", "axes"], ["mean"], keepdims=1),
        helper.make_node("Concat", ["energy", "length", "masked", "mean"], ["embeddings"], axis=1),
        helper.make_node("Identity", ["length"], ["logits"]),
    ]
    given = [
        helper.make_tensor_value_info("samples", TensorProto.FLOAT, ["batch", "n"]),
        helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "n"]),
    ]
    found = [
        helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", "d"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "d"]),
    ]
    graph = helper.make_graph(nodes, "tiny", given, found, [axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


def test_a_network_hears_16_khz_at_one_loudness(tmp_path: Path) -> None:
    embedding = find_embedding(str(network(tmp_path / "speaker.onnx")))
    sound = vowel(150, (500, 1500))
    energy, length, masked, mean = embedded(embedding, 0.1 * sound + 0.2)
    assert (length, masked) == (16_000, 16_000)
    assert energy == pytest.approx(0.06**2, rel=1e-3) and mean == pytest.approx(0, abs=1e-5)


def test_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(EngineError, match="cannot be read as an ONNX network"):
        find_embedding(str(tmp_path / "text.onnx"))
    for shape, gives, says in (((1, 9, 80), (1, 9, 80), "expected samples"), ((1, 9), (1, 9, 1), "gives no output")):
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        found = helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2])
        node = helper.make_node("Identity", ["x"], ["y"])
        if shape != gives:
            node = helper.make_node("Unsqueeze", ["x", "axes"], ["y"])
        graph = helper.make_graph([node], "other", [given], [found], [axes])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (tmp_path / "other.onnx").write_bytes(made.SerializeToString())
        with pytest.raises(EngineError, match=says):
            find_embedding(str(tmp_path / "other.onnx"))
