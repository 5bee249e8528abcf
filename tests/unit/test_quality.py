"""What fewer bits cost: the numbers are right, reading is what talking is, and a bad model is told from a good one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.audio import write_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import quantised
from personaplex.checkpoint.recipe import quantization
from personaplex.config import PARTS, QuantizationConfig
from personaplex.engine.generator import Generator
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.errors import BackendError, ConfigError, UsageError
from personaplex.nn.state import n_bytes, parameters
from personaplex.quality import gate
from personaplex.quality import report as quality_report
from personaplex.quality.comparison import Numbers, compare, joined, summary
from personaplex.quality.gate import examine, refusals
from personaplex.quality.reading import PIECE, Piece, keep, kept, read, write_script
from personaplex.quality.report import Candidate, Report, in_memory, measure, stored, weights
from personaplex.quality.thresholds import GATE, Thresholds
from tests.conftest import PARITY, edit_config
from tests.listening import CONFIG, write_model

PAD = 3


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(write_model(tmp_path_factory.mktemp("listening") / "model", listens=True))


@pytest.fixture(scope="module")
def thresholds() -> Thresholds:
    return dataclasses.replace(Thresholds.read(), tail_seconds=0.3)


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("question") / "question.wav"
    write_audio(path, np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32))
    return path


def random_piece(seed: int, n: int) -> Piece:
    random = np.random.default_rng(seed)
    shapes = ((4, n, 6), (n, 11), (n, 8, 7))
    return Piece(*(mx.array(random.normal(0, 2, shape).astype(np.float32)) for shape in shapes))


def test_the_numbers_are_what_they_are_called() -> None:
    """Against the definitions, in float64, moment by moment."""
    pieces = [(random_piece(1, 5), random_piece(2, 5)), (random_piece(3, 2), random_piece(4, 2))]
    found = compare(pieces, PAD)
    at = 0
    wrong, right = np.zeros(4), np.zeros(4)
    for reference, candidate in pieces:
        for t in range(reference.text.shape[0]):
            for stream in range(9):
                a, b = (np.array(p.text[t] if stream == 0 else p.audio[t, stream - 1], np.float64)
                        for p in (reference, candidate))  # fmt: skip
                p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
                assert found.divergence[at, stream] == pytest.approx((p * np.log(p / q)).sum(), abs=1e-5)
                assert found.agree[at, stream] == (a.argmax() == b.argmax())
                assert found.rank[at, stream] == 1 + sorted(-b).index(-b[a.argmax()])
                if stream == 0:
                    assert found.padding[at] == pytest.approx(p[0] + p[PAD], abs=1e-6)
                    assert found.word[at] == (a.argmax() not in (0, PAD))
            codes = np.array(reference.audio[t], np.float64)
            shares = np.exp(codes) / np.exp(codes).sum(axis=1, keepdims=True)
            entropy = -(shares * np.log(shares)).sum(axis=1).mean()
            assert found.doubt[at] == pytest.approx(entropy / np.log(7), rel=1e-4)
            at += 1
        wrong += np.square(np.array(candidate.layers - reference.layers, np.float64)).sum(axis=(1, 2))
        right += np.square(np.array(reference.layers, np.float64)).sum(axis=(1, 2))
    assert found.drift == pytest.approx(np.sqrt(wrong / right), rel=1e-5)
    numbers = summary(found)
    assert list(numbers) == ["text", "words", "semantic", "acoustic", *(f"acoustic {i}" for i in range(2, 9))]
    assert numbers["text"]["kl"] == pytest.approx(found.divergence[:, 0].mean(), rel=1e-5)
    assert numbers["words"]["kl"] == pytest.approx(found.divergence[found.word, 0].mean(), rel=1e-5)
    assert numbers["acoustic"]["top1"] == pytest.approx(found.agree[:, 2:].mean(), rel=1e-5)
    assert numbers["acoustic 8"]["kl_max"] == pytest.approx(found.divergence[:, 8].max(), rel=1e-5)
    assert numbers["semantic"]["rank"] == pytest.approx(found.rank[:, 1].mean(), rel=1e-5)
    found.doubt[[0, 3]] = 0.01, 0.04
    speaking = np.isin(np.arange(7), [0, 3], invert=True)
    less = summary(found)
    assert less["text"] == numbers["text"] and less["words"] == numbers["words"]
    assert less["semantic"]["kl"] == pytest.approx(found.divergence[speaking, 1].mean(), rel=1e-5)
    assert less["acoustic 3"]["top1"] == pytest.approx(found.agree[speaking, 3].mean(), rel=1e-5)
    both = joined([compare(pieces[:1], PAD), compare(pieces[1:], PAD)])
    assert np.array_equal(both.divergence, found.divergence) and both.drift.shape == found.drift.shape


def test_a_model_beside_itself_differs_in_nothing_and_one_that_fails_is_no_number() -> None:
    piece = random_piece(1, 4)
    same = summary(compare([(piece, piece)], PAD))
    assert all(n["kl"] == 0 and n["top1"] == 1 and n["rank"] == 1 for n in same.values() if n["kl"] is not None)
    broken = summary(compare([(piece, Piece(*(x * float("nan") for x in piece)))], PAD))
    assert broken["text"]["kl"] is None
    silent_piece = piece._replace(text=mx.zeros((4, 11)).at[:, PAD].add(9.0))
    assert set(summary(compare([(silent_piece, piece)], PAD))["words"].values()) == {None}


@pytest.mark.parametrize(("kv_bits", "prompted"), [(16, True), (8, True), (16, False)])
def test_reading_what_was_said_gives_the_logits_it_was_said_from(kv_bits: int, prompted: bool) -> None:
    """Of every stream, over several pieces and a window that is full, through either ring, after a voice or nothing."""
    folder = ModelFolder(PARITY, context_seconds=2.0)
    lm, mimi = folder.load_lm(dtype=mx.float32), folder.load_mimi()
    generator = Generator(lm, folder.config, kv_bits=kv_bits)
    model = PersonaPlex(folder, lm, mimi, folder.load_tokenizer(), compiled=False)
    prompt = model.compose("VOICE0", [7, 9, 11]) if prompted else model.compose(None, None)
    n = PIECE + 5
    pcm = np.random.default_rng(0).normal(0, 0.1, n * 1920).astype(np.float32)
    sampling = Sampling(text_top_k=20, audio_top_k=50)
    script = write_script("noise", generator, mimi, prompt, pcm, sampling, seed=3)
    assert script.n_frames == n and script.columns.shape == (n + 1, 17)
    pieces = list(read(lm, script, kv_bits))
    assert [len(piece.text) for piece in pieces] == [PIECE, 5]
    assert pieces[0].layers.shape == (lm.config.num_layers + 2, PIECE, lm.config.dim)

    _, state = generator.prefill(prompt, seed=3, sampling=sampling)
    encoder, at = mimi.init_encoder(1), 0
    for piece in pieces:
        for text, audio in zip(piece.text, piece.audio, strict=True):
            codes, encoder = mimi.encode_step(mx.array(pcm[None, at * 1920 : (at + 1) * 1920]), encoder)
            step, state = generator.step(codes[:, :, 0], state, Ceiling.over(sampling))
            assert (np.array(step.tokens[0])[[0, 1, 9]] == script.columns[at][[0, 1, 9]]).all()
            for found, wanted in ((text, step.text_logits[0]), (audio, step.audio_logits[0])):
                assert float(mx.abs(found - wanted).max()) < 2e-3 * float(mx.abs(wanted).max())
            at += 1
    assert at == n


def test_what_is_kept_on_disk_comes_back(tmp_path: Path) -> None:
    pieces = [random_piece(seed, 3) for seed in range(12)]
    assert keep(iter(pieces), tmp_path) == 12
    for found, wanted in zip(kept(tmp_path), pieces, strict=True):
        assert all(bool((a == b).all()) for a, b in zip(found, wanted, strict=True))


def test_fewer_bits_cost_more_and_every_part_counts(
    listening: ModelFolder, thresholds: Thresholds, question: Path, tmp_path: Path
) -> None:
    everything = [quantization(bits, CONFIG.lm, 32, PARTS) for bits in ("16", "8", "4")]
    parts = [QuantizationConfig.uniform(4, 32, (part,)) for part in PARTS]
    candidates = [in_memory(str(i), how, listening) for i, how in enumerate([*everything, *parts])]
    candidates.append(dataclasses.replace(candidates[0], kv_bits=8))
    four = everything[2]
    assert four is not None
    candidates.append(Candidate("packed", lambda: quantised(listening.load_lm(), four, unpack=False), four))
    said: list[str] = []
    found = measure(listening.path, candidates, [question, question], thresholds, scratch=tmp_path, say=said.append)
    assert not list(tmp_path.iterdir()), "what was kept for the candidates must be gone"
    kl = [c.numbers["acoustic"]["kl"] or 0.0 for c in found.candidates]
    assert kl[0] == 0 and 0 < kl[1] < kl[2] and kl[7] > 0
    assert found.candidates[0].comparison.drift.max() == 0
    temporal, depformer, heads, embeddings = (c.comparison.drift for c in found.candidates[3:7])
    assert temporal[0] == 0 < temporal[1] and depformer.max() == 0 == heads.max() and embeddings[0] > 0
    assert all(value > 0 for value in kl[3:7])
    assert kl[8] == pytest.approx(kl[2], rel=0.05), "as a GPU runs it"
    assert found.padding and found.padding > 0.5 and said
    assert found.seconds == pytest.approx(2 * 15 * 0.08) and len(found.candidates[0].comparison.padding) == 30
    assert [c.verdict.kind for c in found.candidates[:2]] == ["measured", "measured"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["candidates"][1]["streams"]["text"]["kl"] > 0


def test_bits_and_bytes_are_those_of_the_packed_model(listening: ModelFolder) -> None:
    for bits in ("4", "8", "mixed"):
        how = quantization(bits, CONFIG.lm, 32)
        assert how is not None
        packed = quantised(listening.load_lm(dtype=mx.bfloat16), how, unpack=False)
        n_values = sum(value.size for value in parameters(listening.load_lm()).values())
        assert weights(CONFIG.lm, how) == (n_bytes(parameters(packed)), 8 * n_bytes(parameters(packed)) / n_values)


def test_a_model_that_takes_no_prompt_is_measured_too(
    listening: ModelFolder, thresholds: Thresholds, question: Path, tmp_path: Path
) -> None:
    """Moshi: it talks from the first frame."""
    moshi = tmp_path / "moshi"
    shutil.copytree(listening.path, moshi)
    edit_config(moshi, prompts=False)
    folder = ModelFolder(moshi)
    found = measure(moshi, [in_memory(bits, quantization(bits, CONFIG.lm, 32), folder) for bits in ("16", "4")],
                    [question], thresholds)  # fmt: skip
    same, four = (c.numbers["text"]["kl"] for c in found.candidates)
    assert same == 0 and four is not None and four > 0


def test_random_weights_are_recognised(tmp_path: Path, thresholds: Thresholds, question: Path) -> None:
    """Those of `scripts/random_checkpoint.py`, and the tiny reference model's."""
    for folder in (write_model(tmp_path / "model", listens=False), PARITY):
        candidate = Candidate("itself", ModelFolder(folder).load_lm)
        found = measure(folder, [candidate], [question], thresholds)
        assert found.padding is not None and found.padding < thresholds.least_padding / 5
        (reason,) = refusals(found)
        assert found.candidates[0].verdict.kind == "random" and "random weights" in reason


def test_a_conversion_is_measured_and_refused_beyond_the_limits(
    listening: ModelFolder, thresholds: Thresholds, question: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(thresholds, audio=question)
    monkeypatch.setattr(Thresholds, "read", lambda: short)
    good = examine(listening.path, listening.path, "the same")
    assert good.refusals == () and "| the same | 16.00 |" in good.table and "| measured |" in good.table
    other = write_model(tmp_path / "other", listens=False)
    bad = examine(listening.path, other, "another")
    assert any(reason.startswith("another: text KL is") for reason in bad.refusals) and "| beyond |" in bad.table
    monkeypatch.setattr(quality_report, "available_bytes", lambda: 1 << 20)
    (reason,) = examine(listening.path, listening.path).refusals
    assert "not measured" in reason and "0.0 GiB are available" in reason
    monkeypatch.setattr(gate, "measure", Mock(side_effect=RuntimeError("[malloc] Unable to allocate 9 bytes")))
    assert examine(listening.path, listening.path).refusals == (
        "its quality was not measured: [malloc] Unable to allocate 9 bytes",
    ), "an hour's conversion is not given up for that"
    with pytest.raises(BackendError, match="free some"):
        measure(listening.path, [], [], Thresholds.read())
    with pytest.raises(UsageError, match="built otherwise"):
        stored(PARITY, listening)


def test_limits_are_read_from_a_file_and_kept_to(tmp_path: Path) -> None:
    limits = Thresholds.read()
    assert limits.audio.is_file() and set(limits.limits) == {"text", "semantic", "acoustic"}
    numbers: dict[str, Numbers] = {
        stream: {"kl": limit.kl, "top1": limit.top1} for stream, limit in limits.limits.items()
    }
    assert limits.judge(numbers, 0.9).kind == "measured"
    assert limits.judge(numbers, limits.least_padding / 2).kind == "random"
    assert limits.judge(numbers, None).kind == "random"
    wrong: dict[str, Numbers] = {"text": {"kl": 1.0}, "semantic": {"top1": 0.1}, "acoustic": {"kl": None}}
    for stream, value in wrong.items():
        verdict = limits.judge(numbers | {stream: numbers[stream] | value}, 0.9)
        assert verdict.kind == "beyond" and len(verdict.reasons) == 1 and verdict.reasons[0].startswith(stream)
    text = GATE.read_text()
    for bad in (text.replace("least_padding", "most_padding"), text.replace("kl =", "k ="), "no toml", "[audio]"):
        (tmp_path / "gate.toml").write_text(bad)
        with pytest.raises(ConfigError, match="holds no thresholds"):
            Thresholds.read(tmp_path / "gate.toml")


def test_the_table_has_a_row_per_candidate(listening: ModelFolder, thresholds: Thresholds, question: Path) -> None:
    candidate = in_memory("4", quantization("4", CONFIG.lm, 32), listening)
    found: Report = measure(listening.path, [candidate], [question], thresholds)
    head, line, row = found.markdown().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == head.count("|") - 1 == line.count("|") - 1 and cells[0] == "4" and cells[3] == "16 bits"
    kl = found.candidates[0].numbers["semantic"]["kl"]
    assert cells[8] == f"{kl:.2g}"
