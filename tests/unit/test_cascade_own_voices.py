"""PersonaPlex's own voices as a synthesiser: the tiny model is given a text, and gives the frames that go with it."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from personaplex.cascade import own_voices
from personaplex.cascade.own_voices import MOST_FRAMES_AFTER, OwnVoices
from personaplex.cascade.registry import open_synthesiser
from personaplex.errors import CheckpointError, UsageError
from personaplex.text import PAD
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE
from tests.conftest import PARITY

TEXT = "Good day, captain."


@pytest.fixture(scope="module")
def voices() -> OwnVoices:
    made = open_synthesiser(f"personaplex:{PARITY}")
    assert isinstance(made, OwnVoices)
    return made


def test_every_frame_has_the_text_that_was_given(voices: OwnVoices) -> None:
    given = voices._model.tokenizer.spoken_tokens(TEXT)
    frames = list(voices.frames(TEXT, "VOICE0"))
    after = [frame.token for frame in frames[len(given) :]]
    assert [frame.token for frame in frames[: len(given)]] == given
    assert set(after) == {PAD} and len(after) <= MOST_FRAMES_AFTER
    assert all(frame.pcm.shape == (FRAME_SAMPLES,) and frame.pcm.any() for frame in frames)


def test_words_begin_with_their_frames_and_the_voice_is_heard(voices: OwnVoices) -> None:
    assert voices.voices == ("VOICE0",) and voices.languages == ("en",)
    pieces = list(voices.say(TEXT, language="en"))
    assert [word.text for piece in pieces for word in piece.words] == TEXT.split() and pieces[0].words
    assert {piece.rate for piece in pieces} == {SAMPLE_RATE}

    def sound(voice: str | None) -> np.ndarray:
        with closing(voices.frames("Good day.", voice)) as frames:  # type: ignore[type-var]
            return np.concatenate([frame.pcm for frame in islice(frames, 8)])

    own = sound("VOICE0")
    assert np.array_equal(own, sound("VOICE0")), "the same text sounds the same again"
    assert not np.array_equal(own, sound(None))
    assert not np.array_equal(own, sound(str(PARITY.parents[2] / "examples" / "question.wav")))


def test_it_ends_when_it_has_fallen_silent(voices: OwnVoices, monkeypatch: pytest.MonkeyPatch) -> None:
    given = voices._model.tokenizer.spoken_tokens(TEXT)
    monkeypatch.setattr(own_voices, "QUIET_RMS", 1e9)
    assert len(list(voices.frames(TEXT, "VOICE0"))) == len(given) + own_voices.QUIET_FRAMES
    monkeypatch.setattr(own_voices, "QUIET_RMS", 0.0)
    assert len(list(voices.frames(TEXT, "VOICE0"))) == len(given) + MOST_FRAMES_AFTER


def test_many_ask_one_thread_answers_and_a_closed_text_is_not_said_on(voices: OwnVoices) -> None:
    whole = [piece.pcm for piece in voices.say(TEXT)]
    heard: dict[int, list[np.ndarray]] = {}

    def ask(who: int) -> None:
        heard[who] = [piece.pcm for piece in voices.say(TEXT)]

    askers = [threading.Thread(target=ask, args=(who,)) for who in range(2)]
    for asker in askers:
        asker.start()
    broken = voices.say(TEXT * 9)
    assert len(next(broken).pcm) == FRAME_SAMPLES
    broken.close()  # type: ignore[attr-defined]
    assert [piece.pcm.tobytes() for piece in voices.say(TEXT)] == [pcm.tobytes() for pcm in whole]
    for asker in askers:
        asker.join()
    assert all(np.array_equal(np.concatenate(own), np.concatenate(whole)) for own in heard.values()) and len(heard) == 2


def test_what_is_unknown_is_one_line(voices: OwnVoices, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown voice 'nobody'; there are VOICE0"):
        next(voices.say("a", "nobody"))
    with pytest.raises(UsageError, match="does not speak 'de'; it speaks en"):
        next(voices.say("a", None, "de"))
    with pytest.raises(CheckpointError, match="does not exist"):
        open_synthesiser(f"personaplex:{tmp_path / 'nothing'}")


def test_finding_engines_loads_none_of_their_libraries() -> None:
    heavy = ["mlx.core", "mlx_audio", "piper", "kokoro_onnx", "onnxruntime", "espeakng_loader", "personaplex.model"]
    found = "from personaplex.cascade.registry import find_engines; find_engines('synthesiser')"
    line = f"import sys; {found}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("end", ["", "; raise SystemExit(3)", "; del pieces, voice"])
def test_a_program_that_forgets_to_close_it_ends_well(end: str) -> None:
    """MLX aborts a process whose thread has ended and left its streams behind."""
    opened = f"voice = open_synthesiser('personaplex:{PARITY}')"
    line = f"from personaplex.cascade.registry import open_synthesiser; {opened}; pieces = voice.say('Good day.')"
    done = subprocess.run([sys.executable, "-c", f"{line}; next(pieces){end}"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (3 if "Exit" in end else 0, b"")
