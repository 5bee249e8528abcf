"""The voices' evaluation: codes found in embeddings, rows with known answers, controls, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

from personaplex.audio import write_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.cli.main import main
from personaplex.config import LMConfig
from personaplex.engine.prompt import as_embeddings
from personaplex.errors import AudioError, EngineError, UsageError
from personaplex.evaluate.recordings import Recording
from personaplex.evaluate.sentences import synthesised
from personaplex.evaluate.voices.embedding import find_embedding
from personaplex.evaluate.voices.own_sound import CodeFinder
from personaplex.evaluate.voices.run import Terms, evaluate_voices, own_speech
from personaplex.evaluate.voices.table import Answer, confusions, controls, matrix, nearest_counts, rows, shuffled
from personaplex.model import PersonaPlex
from personaplex.models.lm import LanguageModel
from personaplex.voice import Voice, blend
from tests.conftest import PARITY
from tests.vowels import RATE, vowel


def wide_model(dtype: mx.Dtype, *, quiet: float = 1.0) -> tuple[LanguageModel, Any]:
    """Wide enough for eight tables of 256 rows, as the 7B's 4,096 are for its 2,048; the last table `quiet`er."""
    small = LMConfig(
        dim=192, card=256, text_card=320, num_layers=1, num_heads=2, context=8, depformer_dim=16,
        depformer_num_layers=1, depformer_num_heads=2, depformer_dim_feedforward=16,
    )  # fmt: skip
    config = SimpleNamespace(lm=small, prompts=True, silence_codes=tuple(range(8)), sine_codes=tuple(range(20, 28)))
    lm, rng = LanguageModel(small), np.random.default_rng(3)
    for tables in (lm.text_emb, lm.audio_emb):
        rows = rng.standard_normal(tables.weight.shape)
        if len(rows) > 1:
            rows[7] *= quiet
        tables.weight = mx.array(rows).astype(dtype)
    return lm, config


CODES = np.random.default_rng(5).integers(0, 256, (12, 8)).astype(np.int32)


@pytest.mark.parametrize(("dtype", "quiet"), [(mx.float32, 1), (mx.bfloat16, 1), (mx.bfloat16, 0.1)])
def test_a_voices_codes_are_found_in_its_embeddings(dtype: mx.Dtype, quiet: float) -> None:
    lm, config = wide_model(dtype, quiet=quiet)
    voice = as_embeddings(lm, config, Voice("V", codes=CODES))
    assert voice.codes is None and voice.embeddings is not None and voice.embeddings.dtype == dtype
    found = CodeFinder(lm, config).codes(voice)
    assert found is not None and np.array_equal(found, CODES[2:10].T)
    given = CodeFinder(lm, config).codes(Voice("V", codes=CODES))
    assert given is not None and np.array_equal(given, CODES.T)


def test_where_the_codes_are_not_certain_there_are_none() -> None:
    lm, config = wide_model(mx.float32, quiet=0.1)
    voice, rng = as_embeddings(lm, config, Voice("V", codes=CODES)), np.random.default_rng(0)
    other = as_embeddings(lm, config, Voice("W", codes=CODES[::-1].copy()))
    assert CodeFinder(lm, config).codes(blend(voice, other, 0.5, "mixed")) is None
    # A twentieth of the sum hides which row of the quiet table it was.
    assert voice.embeddings is not None
    noisy = voice.embeddings + 0.13 * mx.array(rng.standard_normal(voice.embeddings.shape))
    assert CodeFinder(lm, config).codes(Voice("V", embeddings=noisy, ring=voice.ring)) is None
    foreign = mx.array(rng.standard_normal(voice.embeddings.shape))
    assert CodeFinder(lm, config).codes(Voice("V", embeddings=foreign, ring=voice.ring)) is None


def test_in_a_narrow_models_embeddings_they_cannot_be_found(model: PersonaPlex) -> None:
    assert CodeFinder(model.lm, model.config).codes(model.load_voice("VOICE0")) is None


def answer(voice: str, likeness: dict[str, float], **more: Any) -> Answer:
    return Answer(voice, "question", 2.0, likeness, **more)


ANSWERS = [
    answer("A", {"A": 0.9, "B": 0.2, "C": 0.1}, pitch_hz=100.0, formants_hz=np.array([500.0, 1500, 2500])),
    answer("A", {"A": 0.5, "B": 0.6, "C": 0.1}, pitch_hz=200.0, formants_hz=np.array([550.0, 1650, 2750])),
    answer("B", {"A": 0.3, "B": 0.8, "C": 0.2}, pitch_hz=0.0),
    answer("C", {"A": 0.1, "B": 0.4, "C": 0.7}, pitch_hz=400.0),
]
PROMPTS = {
    "A": (100.0, np.array([500.0, 1500, 2500])),
    "B": (200.0, np.zeros(3)),
    "C": (400.0, np.array([500.0, 1500, 2500])),
}


def test_rows_of_answers_with_known_likeness() -> None:
    found = {row.what: row for row in rows(ANSWERS, PROMPTS, [0.4, 0.6], 0)}
    assert found["similarity to the own voice prompt"].value == pytest.approx((0.9 + 0.5 + 0.8 + 0.7) / 4)
    nearest = found["nearest of 3 voice prompts is the own (by chance 0.333)"]
    assert (nearest.value, nearest.n) == (0.75, 4)
    others = found["control: similarity to the other voice prompts"]
    assert (nearest.better, others.better) == ("higher", None)
    assert others.value == pytest.approx((0.15 + 0.35 + 0.25 + 0.25) / 4)
    pitches_off = found["pitch: off the voice prompt's (semitones)"]
    assert (pitches_off.value, pitches_off.n) == (4, 3)  # 0, 12 and 0; B's answer has no pitch
    formants_off = found["formants 1 to 3: off the voice prompt's (%)"]
    assert formants_off.value == pytest.approx(5) and formants_off.n == 2
    assert (pitches_off.better, formants_off.better) == ("lower", "lower")
    assert found["A: similarity to its voice prompt"].n == 2
    assert found["for comparison: a voice prompt's first half and its second, which are short"].value == 0.5
    # A's 0.9 beats 0.3 and 0.1, and 0.5 does; B's 0.8 beats 0.2, 0.6 and 0.4; C's 0.7 all three.
    (beaten,) = (row for row in found.values() if "answers in other voices" in row.what)
    assert beaten.value == 1 and beaten.goal == 0.5
    for what, row in found.items():
        added = [value for one in ANSWERS for value in one.values.get(what, [])]
        assert not added or (float(np.mean(added)) == pytest.approx(row.value) and len(added) == row.n)
    assert ["A: similarity to its voice prompt" in one.values for one in ANSWERS] == [True, True, False, False]


def test_matrix_and_confusions() -> None:
    assert matrix(ANSWERS)["A"] == {"A": 0.7, "B": 0.4, "C": 0.1}
    counts = nearest_counts(ANSWERS)
    assert counts == {"A": {"A": 1, "B": 1}, "B": {"B": 1}, "C": {"C": 1}}
    assert confusions(counts) == "A: of 2 answers, nearest to B 1"
    assert ANSWERS[1].as_json()["nearest"] == "B" and json.dumps(ANSWERS[1].as_json())


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_pairs_are_never_the_own(seed: int) -> None:
    names = ["A", "B", "C", "D"]
    pairs = shuffled(names, seed)
    assert set(pairs) == set(pairs.values()) == set(names) and all(a != b for a, b in pairs.items())


def test_controls_hold_for_a_voice_and_not_for_chance() -> None:
    def of(likeness: Callable[[str, str], float]) -> list[Answer]:
        names, rng = "ABCD", np.random.default_rng(1)
        return [answer(n, {m: likeness(n, m) + 0.01 * rng.random() for m in names}) for n in names for _ in range(4)]

    assert [c["held"] for c in controls(of(lambda n, m: float(n == m)), 0)] == [True, True]
    assert [c["held"] for c in controls(of(lambda n, m: -float(n == m)), 0)] == [False, False]
    assert [c["held"] for c in controls(of(lambda n, m: 0.0), 0)] == [False, False]
    assert controls([answer("A", {"A": 0.5})], 0) == []
    alike = [answer(name, {"A": 0.5, "B": 0.5}) for name in "AB"]
    (tied,) = (
        row for row in rows(alike, {"A": PROMPTS["A"], "B": PROMPTS["B"]}, [], 0) if "in other voices" in row.what
    )
    assert tied.value == 0.5
    assert [c["held"] for c in controls([answer("A", {"A": 0.5, "B": 0.1})], 0)] == [None, None]


TONES = {"LOW": 100, "MIDDLE": 160, "HIGH": 250}


class Scripted:
    """A model that speaks in vowels: at the pitch of its voice, or (`deaf` to its prompt) always at the same."""

    lm, config = None, None

    def __init__(self, *, deaf: bool = False, refuses: int = 0) -> None:
        self.deaf, self.refuses = deaf, refuses
        self.mimi = self
        self.asked: list[tuple[str, int]] = []

    def decode(self, codes: mx.array) -> mx.array:
        hz = int(codes[0, 0, 0])
        return mx.array(vowel(hz, (500, 1500, 2500))[None]) if hz else mx.zeros((1, RATE))

    def respond(
        self, pcm: np.ndarray, *, voice: Voice, prompt: str | None, seed: int, **more: float
    ) -> SimpleNamespace:
        assert voice.codes is not None and prompt == "teacher"
        self.asked.append((voice.name, seed))
        hz = 160 if self.deaf else int(voice.codes[0, 0])
        if hz == self.refuses:
            raise EngineError("no more memory")
        quiet = np.zeros(RATE // 2, np.float32)
        spoken = vowel(hz + seed, (500, 1500, 2500)) if len(pcm) > 5000 else quiet
        return SimpleNamespace(audio=np.concatenate([quiet, spoken, quiet]), text="ah")


def voices(**tones: int) -> dict[str, Voice]:
    return {name: Voice(name, codes=np.full((4, 8), hz)) for name, hz in (tones or TONES).items()}


TERMS = Terms(find_embedding("statistics"), "teacher", 1, None)
ASKED = [Recording("one", np.zeros(6000)), Recording("two", np.zeros(7000))]


def test_a_model_that_keeps_its_voice_is_nearest_to_it() -> None:
    model: Any = Scripted()
    result = evaluate_voices(model, voices(), ASKED, TERMS)
    assert model.asked == [(name, seed) for name in TONES for seed in (1, 2)]
    assert [row.value for row in result.rows if row.what.startswith("nearest of 3")] == [1]
    assert [control["held"] for control in result.about["controls"]] == [True, True]
    assert result.about["prompts_heard_as"] == dict.fromkeys(TONES, "codes")
    assert result.about["answers"] == result.about["answers_expected"] == 6 and not result.failures
    assert result.items[0]["pitch_hz"] == pytest.approx(101, abs=1) and result.items[0]["seconds"] == pytest.approx(
        1, abs=0.1
    )


def test_a_model_that_always_sounds_the_same_does_not_pass_its_controls() -> None:
    deaf: Any = Scripted(deaf=True)
    result = evaluate_voices(deaf, voices(), ASKED, TERMS)
    assert [control["held"] for control in result.about["controls"]] == [False, False]
    assert confusions(result.about["nearest"]).count("nearest to MIDDLE") == 2


def test_what_cannot_be_compared_is_told_and_the_rest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_text("no sound")
    asked = [*ASKED, Recording("broken", tmp_path / "broken.wav"), Recording("silencing", np.zeros(100))]
    scripted: Any = Scripted()
    result = evaluate_voices(scripted, voices(LOW=100, HIGH=250, MUTE=0), asked, TERMS)
    reasons = {failure.item: failure.reason for failure in result.failures}
    assert set(reasons) == {
        "the voice prompt MUTE", "broken", "LOW: the answer to silencing", "HIGH: the answer to silencing"
    }  # fmt: skip
    assert (result.about["answers"], result.about["answers_expected"]) == (4, 12)
    first = result.rows[0]
    assert (first.what, first.n) == ("answers measured", 12) and first.value == pytest.approx(4 / 12)
    refusing = cast("Any", Scripted(refuses=250))
    lost = evaluate_voices(refusing, voices(LOW=100, HIGH=250), ASKED, TERMS)
    assert [f.item for f in lost.failures] == [f"HIGH: the answer to {asked.name}" for asked in ASKED]
    assert (lost.rows[0].value, lost.rows[0].n) == (0.5, 2 * len(ASKED))
    nothing = evaluate_voices(scripted, voices(LOW=100), [Recording("silencing", np.zeros(100))], TERMS)
    assert isinstance(nothing.error, AudioError) and "no answer could be compared" in str(nothing.error)
    assert (nothing.rows[0].value, nothing.rows[0].n, len(nothing.failures)) == (0.0, 1, 1)
    with pytest.raises(UsageError, match="no voice to compare"):
        evaluate_voices(scripted, {}, ASKED, TERMS)


def test_own_speech_is_what_is_not_silent() -> None:
    frame = np.ones(1920, np.float32)
    levels = [0, 0, 0, 0.1, 0.3, 0, 0.2]
    sound = np.concatenate([*(level * frame for level in levels), 0.5 * frame[:100]])
    assert np.array_equal(own_speech(sound), np.concatenate([0.1 * frame, 0.3 * frame, 0.2 * frame]))
    assert len(own_speech(np.zeros(100, np.float32))) == 0


def test_sentences_are_the_same_for_a_seed() -> None:
    first, again = synthesised(2, 5), synthesised(2, 5)
    assert [said.name for said in first] == [said.name for said in again] and len({said.name for said in first}) == 2
    assert all(len(said.name.split()) >= 4 and len(said.read()) > RATE / 2 for said in first)
    assert np.array_equal(first[0].read(), again[0].read())


TINY = ["eval", "voices", "--model", str(PARITY)]


def test_from_the_command_line_with_a_voice_whose_sound_is_not_known(
    tmp_path: Path, speech: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    question, clip, kept = tmp_path / "question.wav", tmp_path / "clip.wav", tmp_path / "voices.json"
    write_audio(question, speech[:24_000])
    write_audio(clip, speech)
    named = ["--voice", "VOICE0", "--voice", str(clip)]
    assert main([*TINY, str(question), *named, "--max-seconds", "0.5", "--json", str(kept), "--seed", "2"]) == 0
    said = capsys.readouterr()
    assert "how the model greets" in said.err and "nearest of 2 voice prompts" in said.out
    stored = json.loads(kept.read_text())
    assert stored["about"]["prompts_heard_as"] == {"VOICE0": "greeting", str(clip): "codes"}
    assert stored["about"]["fingerprint"] == ModelFolder(PARITY).fingerprint and len(stored["items"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["question.wav", "--questions", "2"], 2, "not both"),
        (["question.wav", "--voice", "NOBODY"], 5, "unknown voice"),
        (["question.wav", "--voice", "A", "--voice", "A"], 2, "twice"),
        (["question.wav", "--embedding", "ecapa"], 2, "unknown embedding"),
        (["question.wav", "--embedding", "missing.onnx"], 12, "is no file"),
        (["question.wav", "--max-seconds", "0"], 2, "--max-seconds"),
        (["missing.wav"], 3, "does not exist"),
        (["question.wav", "--system-prompt", "nonsense"], 5, "unknown prompt"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    speech: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_audio(Path("question.wav"), speech[:24_000])
    assert main([*TINY, *arguments]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("personaplex: ") and says in last
