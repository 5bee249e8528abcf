"""The codec that comes with the package: what the voices of nano are, it keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pystoi import stoi

from personaplex.audio import write_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import CODEC_FILES, resolve
from personaplex.evaluate.codec.run import evaluate_codec
from personaplex.evaluate.nano.codec import round_trip
from personaplex.evaluate.recordings import find_recordings
from personaplex.models.mimi import Mimi
from personaplex.speech import AGENTS, say
from personaplex.speech.identity import pitch

SENTENCE = "good morning you have reached the little garden shop"


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return ModelFolder(resolve("nano", CODEC_FILES)).load_mimi()


def test_every_voice_keeps_its_pitch(mimi: Mimi) -> None:
    spoken = [say(speaker, SENTENCE).pcm for speaker in AGENTS.values()]
    for name, before, after in zip(AGENTS, spoken, round_trip(mimi, spoken), strict=True):
        assert abs(np.log2(pitch(after) / pitch(before))) < 0.12, (
            f"{name}: {pitch(before):.0f} and {pitch(after):.0f} Hz"
        )


def test_speech_stays_intelligible(mimi: Mimi) -> None:
    spoken = [say(speaker, SENTENCE).pcm for speaker in AGENTS.values()]
    for before, after in zip(spoken, round_trip(mimi, spoken), strict=True):
        assert stoi(before, after, 24_000) > 0.83


def test_silence_stays_silence(mimi: Mimi) -> None:
    (after,) = round_trip(mimi, [np.zeros(48_000, np.float32)])
    assert np.sqrt(np.mean(np.square(after[24_000:]))) < 1e-4


def test_it_beats_itself_damaged_and_the_evaluation_says_so(mimi: Mimi, tmp_path: Path) -> None:
    for name in ("NATF0", "NATF2", "NATM2", "VARM1", "VARM3", "VARF3"):
        write_audio(tmp_path / f"{name}.wav", say(AGENTS[name], SENTENCE).pcm)
    result = evaluate_codec(mimi, find_recordings([tmp_path]))
    controls = {(control["control"], control["measure"]): control["held"] for control in result.about["controls"]}
    assert len(controls) == 4 and all(controls.values()), controls
    assert not result.failures and all(row.met is not False for row in result.rows)
