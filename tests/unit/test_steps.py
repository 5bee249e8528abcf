"""What is recorded of a model's steps: the entropy of its logits, and columns that are read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.conversation import Audio
from personaplex.engine.sampling import step_entropies
from personaplex.live.recording import Recording
from personaplex.runtime.engine import Engine
from personaplex.steps import StepMeasure, StepRecord
from personaplex.units import FRAME_SAMPLES

MEASURES = [StepMeasure(12.3456, 0.5, 1.5, math.nan), StepMeasure(80.0, 0.0, 2.25, 3.0)]


def test_entropies_of_known_distributions() -> None:
    """Certain is 0, even over n tokens is log n; the ninth codebook and those after it are the user's."""
    text = mx.array([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
    audio = np.zeros((2, 16, 8), np.float32)
    audio[:, 1:8, 0] = 60  # acoustic: certain
    audio[:, 8:, :4] = 30
    audio[1, 1, 0] = 0  # one of seven as uncertain as can be
    found = np.array(step_entropies(text, mx.array(audio)))
    assert found == pytest.approx(np.array([[np.log(4), np.log(8), 0], [0, np.log(8), np.log(8) / 7]]), abs=1e-5)


def test_a_record_is_read_back_as_it_was_written_and_says_none_for_no_number() -> None:
    entry = json.loads(json.dumps(StepRecord([0.0, 0.08], MEASURES).as_json(), allow_nan=False))
    assert entry == {
        "at": [0, 0.08], "ms": [12.346, 80], "text": [0.5, 0], "semantic": [1.5, 2.25], "acoustic": [None, 3],
    }  # fmt: skip
    again = StepRecord.from_json(entry)
    assert list(again.at) == [0, 0.08] and again.measures[1] == MEASURES[1] and math.isnan(again.measures[0].acoustic)
    assert StepRecord.from_json(StepRecord((), ()).as_json()).measures == []


@pytest.mark.parametrize("damage", [{"ms": [1]}, {"at": [1]}, {"text": ["a", "b"]}, {"semantic": None}])
def test_a_damaged_record_is_none(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        StepRecord.from_json(StepRecord([0.0, 0.08], MEASURES).as_json() | damage)


def test_the_recording_keeps_steps_in_columns_and_stays_what_it_was_without(tmp_path: Path) -> None:
    for name in ("with", "without"):
        recording = Recording(tmp_path / f"{name}.wav", {"model": "tiny"})
        recording.add(np.zeros(FRAME_SAMPLES, np.float32), np.zeros(FRAME_SAMPLES, np.float32))
        for at, measure in enumerate(MEASURES if name == "with" else []):
            recording.step(0.08 * at, measure)
        recording.close(seed=1)
    found = json.loads((tmp_path / "with.json").read_text())
    assert found.pop("steps")["text"] == [0.5, 0] and found == json.loads((tmp_path / "without.json").read_text())


def test_library_and_engine_tell_of_each_step_what_its_logits_say(model: PersonaPlex, speech: np.ndarray) -> None:
    """The diagnosis computes the same from the same logits, in numpy."""
    pcm = speech[: 5 * FRAME_SAMPLES]
    reply = model.respond(pcm, seed=4, max_steps=0)
    diagnosed = model.diagnose(pcm, seed=4)
    assert len(reply.steps.measures) == len(diagnosed) == 5
    for measure, step in zip(reply.steps.measures, diagnosed, strict=True):
        assert measure.text == pytest.approx(step.text_entropy, abs=1e-4)
        assert measure.semantic == pytest.approx(step.code_entropies[0], abs=1e-4)
        assert measure.acoustic == pytest.approx(np.mean(step.code_entropies[1:8]), abs=1e-4)
    assert [measure.ms for measure in reply.steps.measures] == reply.timings.step_ms
    assert "".join(reply.texts).strip() == reply.text
    with Engine(model, 1) as engine, engine.open() as conversation:
        conversation.feed(pcm)
        conversation.finish()
        told = [event.measure for event in conversation.events() if isinstance(event, Audio)]
    assert len(told) == 5 and all(m is not None and m.ms > 0 and 0 < m.text <= np.log(320) for m in told)
