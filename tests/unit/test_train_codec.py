"""Training the codec: runs that resume to the bit, losses, quantiser, corpus, and the way back into a file."""

from __future__ import annotations

import errno
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import load_lm, load_mimi
from personaplex.checkpoint.save import save_lm, save_mimi
from personaplex.config import CodecTransformerConfig, MimiConfig, QuantizerConfig, SeanetConfig
from personaplex.errors import CheckpointError, ConfigError, TrainingError
from personaplex.models.mimi import Mimi
from personaplex.nn.state import parameters
from personaplex.speech import AGENTS, PHONES, Phone, Utterance
from personaplex.train import corpus as corpora
from personaplex.train.codec import BRANCHES, CodecTrainer, CodecTraining, read_codec_training, train_codec
from personaplex.train.corpus import LABEL_SAMPLES, Corpus, Job, make_corpus, phone_labels
from personaplex.train.losses import envelope_distance, mel_distance
from personaplex.train.quantizer import DECAY, Books, k_means, quantise
from personaplex.train.run import Run, pack

MIMI = MimiConfig(
    seanet=SeanetConfig(dimension=16, n_filters=2),
    transformer=CodecTransformerConfig(
        d_model=16,
        num_heads=2,
        num_layers=1,
        layer_scale=0.1,
        context=16,
        dim_feedforward=32,
        input_dimension=16,
        output_dimensions=(16,),
    ),
    quantizer=QuantizerConfig(dimension=4, n_q=8, bins=8, input_dimension=16, output_dimension=16),
)
CONFIG = CodecTraining(
    mimi=MIMI,
    steps=30,
    batch=1,
    crop_frames=8,
    shares=(1.0, 0.0, 0.0),
    learning_rate=3e-3,
    warmup=5,
    quantise_from=10,
    k_means_batches=1,
    restart_every=4,
    critic_from=100,
    critic_channels=2,
    critic_frames=1,
    log_every=5,
    save_every=12,
)


def said(speaker: object, text: str) -> Utterance:
    """A hum for every letter."""
    n = 4_000 * len(text)
    t = np.arange(n) / 24_000
    pcm = (0.2 * np.sin(2 * np.pi * 200 * t) * (1 + np.sin(2 * np.pi * 6 * t))).astype(np.float32)
    phones = tuple(Phone(PHONES[1 + i % 3], 4_000 * i, 4_000 * (i + 1)) for i in range(len(text)))
    return Utterance(pcm, (), phones)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    speaker = next(iter(AGENTS.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "say", said)
        jobs = [Job("agent", i, speaker=speaker, text="hello"[: 3 + i % 3]) for i in range(6)]
        jobs.append(Job("other", 7, kind="sine"))
        return make_corpus(tmp_path_factory.mktemp("corpus") / "speech", jobs, 1, lambda line: None)


def test_a_crop_is_the_same_for_the_same_step(corpus: Corpus) -> None:
    a, b = (corpus.batch(1, 5, 3, 8, (0.5, 0, 0.5)) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert a.heard.shape == (3, 15_360) and a.phones.shape == (3, 8, 4)
    assert not np.array_equal(a.heard, corpus.batch(1, 6, 3, 8, (0.5, 0, 0.5)).heard)


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    kinds = ("silence", "sine", "noise", "sound")
    jobs = [Job("other", i, kind=kind) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]
    for processes in (1, 2):
        make_corpus(tmp_path / str(processes), jobs, processes, lambda line: None)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_a_damaged_corpus_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c", [Job("other", 1, kind="silence")], 1, lambda line: None)
    with pytest.raises(TrainingError, match="exists already"):
        make_corpus(tmp_path / "c", [], 1, lambda line: None)
    (tmp_path / "c" / "phones.u8").write_bytes(b"\0")
    with pytest.raises(TrainingError, match="cut short"):
        Corpus(tmp_path / "c")
    with pytest.raises(TrainingError, match="no corpus"):
        Corpus(tmp_path / "nowhere")


def test_a_label_is_what_is_said_in_the_middle() -> None:
    labels = phone_labels([Phone(PHONES[2], 100, LABEL_SAMPLES), Phone(PHONES[3], LABEL_SAMPLES, 2_000)], 5)
    assert labels.tolist() == [2, 3, 3, 3, 0]


def test_a_sound_is_at_no_distance_from_itself() -> None:
    pcm = 0.1 * mx.random.normal((2, 15_360), key=mx.random.key(1))
    assert mel_distance(pcm, pcm).item() == 0
    assert envelope_distance(pcm, pcm).item() == pytest.approx(0, abs=1e-3)
    assert (mel_distance(pcm, mx.zeros_like(pcm)) > 5).item()
    slope = mx.grad(lambda x: mel_distance(x, pcm) + envelope_distance(x, pcm))(mx.zeros_like(pcm))
    assert mx.isfinite(slope).all().item()


def test_centroids_follow_their_members() -> None:
    vectors = mx.random.normal((50, 3), key=mx.random.key(2))
    books = Books(mx.random.normal((2, 5, 3), key=mx.random.key(3)), mx.array([[1.0, 2, 3, 1, 1], [2.0, 1, 1, 1, 1]]))
    kept = mx.array([2] * 25 + [1] * 25)
    made = quantise(vectors, books, kept, mx.array(0.0), mx.random.key(4))

    residual, total = np.array(vectors), np.zeros((50, 3), np.float32)
    for k in range(2):
        sums, usage = np.array(books.sums[k]), np.array(books.usage[k])
        table = sums / usage[:, None]
        code = np.square(residual[:, None] - table).sum(axis=-1).argmin(axis=-1)
        assert np.array_equal(code, np.array(made.codes[:, k]))
        for c in range(5):
            members = residual[code == c]
            sums[c] = DECAY * sums[c] + (1 - DECAY) * members.sum(axis=0)
            usage[c] = DECAY * usage[c] + (1 - DECAY) * len(members)
        np.testing.assert_allclose(np.array(made.books.sums[k]), sums, atol=1e-5)
        np.testing.assert_allclose(np.array(made.books.usage[k]), usage, atol=1e-5)
        total += np.where(k < np.array(kept)[:, None], table[code], 0)
        residual = residual - table[code]
    np.testing.assert_allclose(np.array(made.vectors), total, atol=1e-5)


def test_a_dead_centroid_is_put_among_the_vectors() -> None:
    vectors = mx.random.normal((50, 3), key=mx.random.key(5))
    books = k_means(vectors, 8, mx.random.key(6), rounds=5)
    dead = Books(books.sums, mx.where(mx.arange(8) == 3, 1e-4, books.usage))
    after = quantise(vectors, dead, mx.ones((50,), mx.int32), mx.array(1.0), mx.random.key(7)).books
    assert (mx.abs(vectors - after.centroids[0, 3]).sum(axis=1).min() < 1e-5).item()


def test_training_quantises_as_the_model_does(corpus: Corpus) -> None:
    trainer = CodecTrainer(CONFIG, corpus.n_phones)
    batch = corpus.batch(1, 0, 2, 8, CONFIG.shares)
    state = trainer.seed_books(trainer.init_state(), [batch])
    model = trainer.export(state)
    latent, _ = model.latents(mx.array(batch.heard), model.init_encoder(2))
    codes = model.quantizer.encode(latent).reshape(-1, 8)
    for name, part in zip(BRANCHES, (slice(0, 1), slice(1, 8)), strict=True):
        vectors = model.quantizer[name].input_proj(latent).reshape(-1, 4)
        made = quantise(vectors, state.books[name], mx.full((16,), 8), mx.array(0.0), mx.random.key(1))
        assert mx.array_equal(made.codes.astype(mx.int32), codes[:, part]).item()


def test_every_weight_learns_and_so_does_the_critic(corpus: Corpus) -> None:
    config = replace(CONFIG, batch=1, critic_from=0, quantise_from=0, decay=0.0)
    trainer = CodecTrainer(config, corpus.n_phones)
    batch = corpus.batch(1, 1, 1, 8, config.shares)
    state = trainer.seed_books(trainer.init_state(), [batch])
    after, numbers = trainer.step(state, batch, 0)
    assert np.isfinite(numbers["critic"].item())
    for before, now in ((state.weights, after.weights), (state.critic, after.critic)):
        still = [name for name in before if mx.array_equal(before[name], now[name]).item()]
        # Verdicts inside the hinge: the last bias is pulled up by what is real exactly as far as down by what is made.
        assert [name for name in still if not name.endswith("layers.5.bias")] == []


def test_the_loss_falls_and_a_resumed_run_is_the_same_run(corpus: Corpus, tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", asdict(CONFIG))
    trainer, state, done = train_codec(whole, CONFIG, corpus)
    assert done
    losses = [line["mel"] for line in whole.lines()]
    assert losses[-1] < 0.9 * losses[0]

    # What an interruption after step 24 leaves behind, with its log beyond the checkpoint.
    cut = Run(tmp_path / "cut", asdict(CONFIG))
    for path in whole.checkpoints()[:1]:
        (cut.folder / path.name).write_bytes(path.read_bytes())
    (cut.folder / "log.jsonl").write_text((whole.folder / "log.jsonl").read_text())
    _, resumed, _ = train_codec(cut, CONFIG, corpus)
    assert [line["step"] for line in cut.lines()] == [line["step"] for line in whole.lines()]
    again = pack(resumed)
    assert all(mx.array_equal(array, again[name]).item() for name, array in pack(state).items())

    path = tmp_path / "tokenizer-nano.safetensors"
    model = trainer.export(state)
    save_mimi(path, model, MIMI)
    _same(model, load_mimi(path, MIMI), atol=1e-6)


def _same(a: object, b: object, atol: float = 0.0) -> None:
    ours, theirs = parameters(a), parameters(b)  # type: ignore[arg-type]
    assert ours.keys() == theirs.keys()
    assert all(mx.allclose(ours[name], theirs[name], rtol=0, atol=atol).item() for name in ours)


def test_a_model_comes_back_from_its_file(folder: ModelFolder, mimi: Mimi, tmp_path: Path) -> None:
    save_mimi(tmp_path / "mimi.safetensors", mimi, folder.config.mimi)
    _same(mimi, load_mimi(tmp_path / "mimi.safetensors", folder.config.mimi))
    lm = folder.load_lm(16, mx.float32)
    save_lm(tmp_path / "model.safetensors", lm)
    _same(lm, load_lm(tmp_path / "model.safetensors", folder.config.lm, depformer_steps=16, dtype=mx.float32))
    with pytest.raises(CheckpointError, match="does not keep all"):
        save_lm(tmp_path / "half.safetensors", folder.load_lm(8, mx.float32))


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    Run(tmp_path / "run", {"a": 1, "b": {"c": (1, 2)}})
    Run(tmp_path / "run", {"a": 1, "b": {"c": (1, 2)}})
    with pytest.raises(TrainingError, match=r"b\.c is \[1, 2\], now it is 3"):
        Run(tmp_path / "run", {"a": 1, "b": {"c": 3}})


def test_checkpoints_damage_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    run = Run(tmp_path, {"a": 1}, lines.append)
    assert run.restore() is None
    for step in (1, 2, 3):
        run.log(step, loss=1 / step, odd=float("nan"))
        run.save(step, {"w": mx.full((4,), step), "b": mx.ones((2, 3), mx.bfloat16)}, loss=1.0)
    assert [path.name for path in run.checkpoints()] == ["step-00000002.safetensors", "step-00000003.safetensors"]
    assert "loss = 0.3333" in run.plot().read_text()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mx, "save_safetensors", full)
        with pytest.raises(TrainingError, match=r"No space left on device.*step-00000003\.safetensors is intact"):
            run.save(4, {"w": mx.ones((4,))})
    assert len(list(tmp_path.iterdir())) == 5

    newest = run.checkpoints()[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[-2] ^= 1
    newest.write_bytes(damaged)
    restored = run.restore()
    assert restored is not None and restored[0] == 2 and restored[1]["w"].tolist() == [2, 2, 2, 2]
    assert "warning" in lines[-1] and [line["step"] for line in run.lines()] == [1, 2]
    run.checkpoints()[0].write_bytes(b"no")
    with pytest.raises(TrainingError, match="can be read"):
        run.restore()


def test_the_configuration_is_strict(tmp_path: Path) -> None:
    config = read_codec_training(Path(__file__).parents[2] / "runs" / "nano-codec-2.toml")
    assert config.mimi.seanet.hop == 960 and config.mimi.quantizer.bins == 512
    (tmp_path / "c.toml").write_text("stepps = 3\n")
    with pytest.raises(ConfigError, match="stepps"):
        read_codec_training(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="precision"):
        CodecTraining(precision="half")
