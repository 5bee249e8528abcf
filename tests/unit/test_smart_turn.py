"""Smart Turn: its features against the published ones, a tiny network in the real ONNX Runtime, turns with pauses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from personaplex.audio import write_audio
from personaplex.cascade.backend import Cascade
from personaplex.cascade.conversation import Manner
from personaplex.cascade.ear import Pauses
from personaplex.cascade.registry import open_end_of_turn
from personaplex.cascade.smart_turn import FILE, INPUT, N_FRAMES, REPO, SmartTurn, log_mel
from personaplex.cascade.turns import Rules
from personaplex.cli.main import main
from personaplex.conversation import AgentStarted, Error, Event, UserStarted, UserStopped, UserText
from personaplex.errors import EngineError
from personaplex.turns import VoiceActivity
from personaplex.units import FRAME_RATE
from personaplex.vad import LevelDetector
from tests.cascade_engines import Engines, silence, speech
from tests.conftest import FIXTURES
from tests.hub_server import Repo, ask, running
from tests.unit.test_cascade_conversation import PARTS, hold, of

TALK = ["talk", "--backend", "cascade", "--plain", "-q", "-i", "quiet.wav", "-o", "a.wav"]


def tiny(name: str = INPUT, n_frames: int = N_FRAMES) -> bytes:
    """A network of Smart Turn's inputs and outputs: a turn is over when it is loud for some three seconds in all."""
    at = helper.make_tensor("at", TensorProto.FLOAT, [1], [0.3])
    steep = helper.make_tensor("steep", TensorProto.FLOAT, [1], [40.0])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("ReduceMax", [name, "axes"], ["loudest"], keepdims=0),
        helper.make_node("ReduceMean", ["loudest", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["mean", "at"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["logits"]),
    ]
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 80, n_frames])
    found = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(nodes, "tiny", [given], [found], [at, steep, axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny())
    return path


def published() -> np.ndarray:
    """What the fixture was made of, 8 s at 16 kHz, with 2.5 s of zeros before.

    `transformers` 5.23: `WhisperFeatureExtractor(chunk_length=8)(pcm, sampling_rate=16000, padding="max_length",
    max_length=128000, truncation=True, do_normalize=True, return_tensors="np").input_features[0][:, ::40]`, as
    pipecat-ai/smart-turn calls it.
    """
    t = np.arange(128_000) / 16_000
    tones = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) * np.sin(2 * np.pi * 1.7 * t)
    return np.where(t < 2.5, 0, tones + 0.01 * np.sin(2 * np.pi * 3333 * t)).astype(np.float32)


def test_the_features_are_the_published_ones() -> None:
    expected = np.load(FIXTURES / "smart-turn-mel.npy")
    pcm = published()
    found = log_mel(pcm)
    assert found.shape == (80, N_FRAMES) and found.dtype == np.float32
    assert np.abs(found[:, ::40] - expected).max() < 1e-5
    assert np.array_equal(log_mel(pcm[40_000:]), found), "what is short is padded before"
    assert np.array_equal(log_mel(np.concatenate([pcm, pcm])), found), "the last 8 s"


def test_the_end_of_what_was_said_is_judged(model: Path) -> None:
    judge = open_end_of_turn(f"smart:{model}")
    assert judge.probability(np.concatenate([speech(0.8), silence(0.2)])) < 0.1
    assert judge.probability(np.concatenate([speech(3), silence(0.2)])) > 0.9
    assert judge.probability(np.concatenate([speech(3), silence(9)])) < 0.1, "the last 8 s"
    assert 0 <= judge.probability(np.zeros(0, np.float32)) <= 1


def call(
    engines: Engines,
    pauses: Pauses | None,
    *sounds: np.ndarray,
    rules: Rules = Rules(),  # noqa: B008 - frozen
) -> list[Event]:
    rule = VoiceActivity(speech_seconds=0.15, silence_seconds=0.2)
    manner = Manner(rules, rule, pauses=pauses, detector=LevelDetector, patient=True)
    with Cascade(1, parts=PARTS, manner=manner) as cascade:
        return hold(cascade, *sounds)


class Never:
    """To whom no turn is over."""

    def probability(self, pcm: np.ndarray) -> float:
        return 0.0


def test_who_goes_on_after_the_longest_utterance_and_a_pause_is_heard(engines: Engines) -> None:
    engines.recogniser.said = ["a long story", "and its end"]
    sounds = [silence(0.5), speech(3), silence(0.5), speech(1), silence(4)]
    events = call(engines, Pauses(Never()), *sounds, rules=Rules(longest_seconds=2.0))
    assert [event.text for event in of(UserText, events) if event.final] == ["a long story", "and its end"]


def test_a_pause_does_not_end_a_turn_and_its_end_does(engines: Engines, model: Path) -> None:
    sounds = [silence(0.5), speech(0.8), silence(0.5), speech(2.2), silence(4)]
    engines.recogniser.said = ["what time", "is it"]
    assert len(of(UserStopped, call(engines, None, *sounds))) == 2, "by silence alone: two turns"
    engines.recogniser.said = ["what time is it"]
    events = call(engines, Pauses(SmartTurn(str(model))), *sounds)
    (started,), (stopped,) = of(UserStarted, events), of(UserStopped, events)
    assert (stopped.frame - started.frame) / FRAME_RATE == pytest.approx(3.5, abs=0.2)
    assert [event.text for event in of(UserText, events) if event.final] == ["what time is it"]
    assert len(engines.thinker.asked[2:]) == 1 and of(AgentStarted, events)


def test_who_says_no_more_is_answered_after_the_longest_pause(engines: Engines, model: Path) -> None:
    engines.recogniser.said = ["what time"]
    events = call(engines, Pauses(SmartTurn(str(model)), longest_seconds=1.5), silence(0.5), speech(0.8), silence(4))
    (started,), (stopped,) = of(UserStarted, events), of(UserStopped, events)
    assert (stopped.frame - started.frame) / FRAME_RATE == pytest.approx(0.8 + 1.5, abs=0.3)
    assert engines.thinker.asked


def test_who_speaks_into_an_answer_is_not_judged(engines: Engines, model: Path) -> None:
    """An "uh-huh" does not hold the agent for seconds."""
    engines.recogniser.said = ["tell me", "uh huh"]
    engines.thinker.tokens = ["word " * 30]
    sounds = [speech(3), silence(1.5), speech(0.8), silence(2)]
    events = call(engines, Pauses(SmartTurn(str(model))), *sounds)
    started, stopped = of(UserStarted, events)[1], of(UserStopped, events)[1]
    assert (stopped.frame - started.frame) / FRAME_RATE < 1.2


def test_what_cannot_be_judged_ends_the_turn_and_is_told(engines: Engines) -> None:
    class Broken:
        def probability(self, pcm: np.ndarray) -> float:
            raise RuntimeError("broken")

    engines.recogniser.said = ["what time"]
    events = call(engines, Pauses(Broken()), silence(0.5), speech(0.8), silence(2))
    (error,) = of(Error, events)
    assert "the end of turn failed: RuntimeError: broken" in str(error.error)
    assert of(UserStopped, events) and engines.thinker.asked


def test_the_model_comes_from_the_hub_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({REPO: Repo({FILE: tiny()})}) as hub:
        ask(monkeypatch, hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        for _ in range(2):
            assert open_end_of_turn("smart").probability(speech(3)) > 0.9
        assert [file for file, _ in hub.downloads()] == [FILE]


def test_a_model_that_is_missing_or_another_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EngineError, match=f"download {FILE} of https://huggingface.co/{REPO} and name it"):
        SmartTurn()
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    (tmp_path / "other.onnx").write_bytes(tiny("pixels", 3))
    for file, told in (("no.onnx", "is no file"), ("noise.onnx", "cannot be read"), ("other.onnx", "not Smart Turn")):
        with pytest.raises(EngineError, match=told) as error:
            open_end_of_turn(f"smart:{file}")
        assert "\n" not in str(error.value)
    write_audio(tmp_path / "quiet.wav", silence(1))
    mistakes = [
        (["--end-of-turn", "x"], 2, "unknown end of turn 'x'; there are smart"),
        (["--end-of-turn", "smart"], 12, "name it: --end-of-turn smart:FILE"),
        (["--end-of-turn", "smart:no.onnx"], 12, "is no file"),
        (["--end-of-turn", "smart", "--mode", "push"], 2, "goes with --mode duplex"),
        (["--end-of-turn", "smart", "--backend", "duplex"], 2, "--end-of-turn is a cascade's"),
    ]
    for arguments, code, told in mistakes:
        assert main([*TALK, *arguments]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
