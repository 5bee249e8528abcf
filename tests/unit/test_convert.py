"""Conversion: what comes out means what went in, takes little memory, and nothing that goes wrong leaves half a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from personaplex.checkpoint import convert as conversion
from personaplex.checkpoint import packing
from personaplex.checkpoint.card import Quality
from personaplex.checkpoint.convert import convert, result_config
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import quantised
from personaplex.checkpoint.recipe import quantization
from personaplex.checkpoint.tensors import Entry, TensorFile
from personaplex.checkpoint.writer import TensorWriter
from personaplex.cli import convert as cli
from personaplex.cli.main import main
from personaplex.config import ModelConfig, Packing, Provenance, QuantizationConfig
from personaplex.errors import CheckpointError, ConfigError, OutputError
from personaplex.nn.state import parameters
from tests.conftest import PARITY, edit_config, same
from tests.wide import WIDE, write_wide

ABOUT = Provenance("a folder", "", "nvidia/personaplex-7b-v1", "personaplex")
LM_FILE, CODEC_FILE = "model.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(write_wide(tmp_path_factory.mktemp("wide")))


def converted(source: ModelFolder, out: Path, how: QuantizationConfig | None, **options: bool) -> ModelFolder:
    config = result_config(source.config, how, **({"keep_user_steps": False, "trim_codec": False} | options))
    convert(source, out, config, ABOUT)
    return ModelFolder(out)


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of `personaplex convert` and what it says, which is one line."""
    code = main(["convert", *map(str, arguments)])
    said = capsys.readouterr().err.strip()
    assert code == 0 or said.count("\n") == 0, said
    return code, said


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("keep", [False, True])
def test_sixteen_bits_are_the_model_itself(folder: ModelFolder, tmp_path: Path, keep: bool) -> None:
    found = converted(folder, tmp_path / "out", None, keep_user_steps=keep)
    assert (found.config.lm.dep_q, len(found.open_lm().entries)) == ((16, 157) if keep else (8, 101))
    steps = 16 if keep else 8
    before, after = (parameters(each.load_lm(steps, mx.bfloat16)) for each in (folder, found))
    assert before.keys() == after.keys() and all(same(after[name], array) for name, array in before.items())
    for name in (CODEC_FILE, "tokenizer_spm_32k_3.model"):
        assert (found.path / name).read_bytes() == (folder.path / name).read_bytes()
    old, new = folder.voices.load("VOICE0"), found.voices.load("VOICE0")
    assert found.voices.names() == ["VOICE0"] and (found.path / "voices" / "VOICE0.safetensors").is_file()
    assert old.embeddings is not None and new.embeddings is not None and old.ring is not None
    assert same(new.embeddings, old.embeddings) and new.embeddings.dtype == old.embeddings.dtype
    assert (new.ring == old.ring).all()


@pytest.mark.parametrize(("bits", "most"), [("8", 0.02), ("4", 0.3), ("mixed", 0.3)])
def test_fewer_bits_are_what_is_made_in_memory(wide: ModelFolder, tmp_path: Path, bits: str, most: float) -> None:
    assert main(["convert", str(wide.path), "--out", str(tmp_path / "out"), "--bits", bits, "--group-size", "32"]) == 0
    found = ModelFolder(tmp_path / "out")
    model = wide.load_lm(dtype=mx.float32)
    how = quantization(bits, WIDE.lm, 32)
    assert how is not None and found.config.quantization == how
    loaded, made = parameters(found.load_lm(dtype=mx.float32)), parameters(quantised(model, how))
    assert loaded.keys() == made.keys() and all(same(made[name], array) for name, array in loaded.items())
    frames = mx.random.randint(0, 300, (1, 17, 20), key=mx.random.key(1))
    wanted, heard = (each.teacher_forced(frames) for each in (model, found.load_lm(dtype=mx.float32)))
    for i in (0, 2):
        error = float(mx.sqrt(mx.square(heard[i] - wanted[i]).mean() / mx.square(wanted[i]).mean()))
        sys.stdout.write(f"{bits}: {error:.4f}\n")
        assert 0 < error < most


def test_mixed_is_the_recipe() -> None:
    how = quantization("mixed", WIDE.lm)
    assert how is not None
    layers = [how.of("temporal", f"transformer.layers.{i}.gating.linear_in.weight") for i in range(32)]
    assert layers[0] == layers[31] == Packing(8, 32) and set(layers[1:31]) == {Packing(4, 32)}
    assert how.of("heads", "text_linear.weight") == Packing(8, 32) and how.of("embeddings", "emb.0.weight") is None
    only = quantization("mixed", WIDE.lm, 64, ["temporal"])
    assert only is not None and only.depformer.bits == 16
    assert only.temporal.group_size == only.exceptions[0].group_size == 64
    without = quantization("mixed", WIDE.lm, None, ["heads"])
    assert without is not None and without.exceptions == () and without.temporal.bits == 16
    with pytest.raises(ConfigError, match="unknown part 'mouth'"):
        quantization("mixed", WIDE.lm, None, ["mouth"])


def test_a_packed_source_is_copied_or_unpacked(wide: ModelFolder, tmp_path: Path) -> None:
    """The same bits again are the same codes; other bits are made of what the codes stand for."""
    eight = QuantizationConfig.uniform(8, 64)
    once = converted(wide, tmp_path / "once", eight)
    twice = converted(once, tmp_path / "twice", eight)
    assert hashes(once.path)[LM_FILE] == hashes(twice.path)[LM_FILE]
    plain = converted(once, tmp_path / "plain", None)
    before, after = parameters(once.load_lm(dtype=mx.float32)), parameters(plain.load_lm(dtype=mx.float32))
    assert all(same(after[name], array.astype(mx.bfloat16)) for name, array in before.items())


def test_a_codec_without_its_unused_codebooks(folder: ModelFolder, tmp_path: Path) -> None:
    """The tiny codec has no more than eight; of one with twelve, four go."""
    source = tmp_path / "source"
    shutil.copytree(PARITY, source)
    codec = dict(mx.load(str(PARITY / CODEC_FILE)))  # type: ignore[arg-type]
    book = "quantizer.rvq_rest.vq.layers.{}._codebook.{}"
    for i in range(7, 11):
        codec |= {book.format(i, part): codec[book.format(0, part)] for part in ("embedding_sum", "cluster_usage")}
        codec |= {book.format(i, "_initialized"): mx.ones(1)}
    mx.save_safetensors(str(source / CODEC_FILE), codec)
    mimi = json.loads((PARITY / "config.json").read_text())["mimi"]
    edit_config(source, mimi=mimi | {"quantizer": mimi["quantizer"] | {"n_q": 12}})
    found = converted(ModelFolder(source), tmp_path / "out", None, trim_codec=True)
    assert found.config.mimi.quantizer.n_q == 8 and len(TensorFile(found.codec_file).entries) == 126
    pcm = mx.random.normal((1, 5 * 1920), key=mx.random.key(0))
    assert same(found.load_mimi().encode(pcm), folder.load_mimi().encode(pcm))


def test_the_folder_says_what_it_is(wide: ModelFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(wide.path), "--out", str(out), "--bits", "mixed"]) == 0
    config = ModelConfig.read(out / "config.json")
    assert config.provenance is not None and config.provenance.source == wide.path.name
    assert config.provenance.source_fingerprint == wide.fingerprint
    stored = {file.name: file.sha256 for file in config.provenance.files}
    assert stored == {name: value for name, value in hashes(out).items() if name not in ("config.json", "README.md")}
    card = (out / "README.md").read_text()
    assert "library_name: mlx" in card and "license: unknown" in card and "base_model:" not in card
    assert "| temporal | 4 | 32 | 1,228,800 |" in card and "| temporal | 8 | 32 | 81,920 |" in card
    quality = Quality("| text | 0.1 |")
    known = dataclasses.replace(config.provenance, base_model="nvidia/personaplex-7b-v1")
    card = conversion.card(dataclasses.replace(config, provenance=known), quality)
    assert "license_name: nvidia-open-model-license" in card and "base_model: nvidia/personaplex-7b-v1\n" in card
    assert "base_model_relation: quantized" in card and "| text | 0.1 |" in card and "Not measured" not in card


def test_memory_is_that_of_a_tensor_and_not_of_the_model(
    wide: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the 475 names at width 64; blocks are as small beside the largest tensor as they are in the 7B."""
    monkeypatch.setattr(packing, "AT_ONCE", 1 << 12)
    sizes = [entry.n_bytes for entry in wide.open_lm().entries.values()]
    assert len(sizes) == 475 and sum(sizes) > 20 * max(sizes)
    config = result_config(wide.config, QuantizationConfig.uniform(4, 32), keep_user_steps=True, trim_codec=False)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    convert(wide, tmp_path / "out", config, ABOUT)
    peak = (mx.get_peak_memory() - before) / max(sizes)
    sys.stdout.write(f"peak: {peak:.2f} of the largest tensor\n")
    assert 1 < peak < 4
