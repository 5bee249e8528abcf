"""The conversions that are on the Hub: their layout, to the byte, and what their tensors mean."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex.checkpoint.convert import convert, result_config
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import load_lm
from personaplex.checkpoint.published import reference_name
from personaplex.checkpoint.rules import lm_rules
from personaplex.checkpoint.tensors import Entry, TensorFile
from personaplex.checkpoint.voices import voice_from_file
from personaplex.checkpoint.writer import header
from personaplex.config import LMConfig, ModelConfig, Provenance, QuantizationConfig
from personaplex.errors import CheckpointError, ConfigError
from personaplex.nn.state import parameters
from tests.conftest import same
from tests.published import layout, place, published_config, write_published
from tests.wide import WIDE, write_wide

SIZES = {
    8: {"temporal": (449, 6_988_291_888), "depformer": (672, 1_381_596_968), "embeddings": (50, 988_459_536)},
    4: {"temporal": (449, 3_699_957_408), "depformer": (672, 731_478_800), "embeddings": (50, 988_459_536)},
}
"""Tensors and bytes of the published files."""


@pytest.mark.parametrize("bits", [8, 4])
def test_the_files_of_the_7b_have_the_published_sizes(bits: int) -> None:
    found = {}
    for name, entries in layout(LMConfig(), bits).items():
        n_bytes = len(header(entries)[0]) + sum(entry.n_bytes for entry in entries.values())
        found[name.removesuffix(".safetensors")] = (len(entries), n_bytes)
    assert found == SIZES[bits]


def test_the_headers_are_those_that_others_write() -> None:
    """The reference's own file, rebuilt from names and shapes alone, has the bytes of the real one."""
    entries = {name: Entry("BF16", shape) for rule in lm_rules(LMConfig(), 16) for name, shape in rule.sources.items()}
    assert len(header(entries)[0]) + sum(entry.n_bytes for entry in entries.values()) == 16_742_874_000


def test_names_go_there_and_back() -> None:
    names = [name for rule in lm_rules(LMConfig(), 16) for name in rule.sources]
    assert [reference_name(*place(name)) for name in names] == names


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize("bits", [8, 4])
def test_they_mean_what_they_say(plain: Path, tmp_path: Path, bits: int) -> None:
    meant = write_published(plain / "model.safetensors", tmp_path / "published", WIDE, bits)
    folder = ModelFolder(tmp_path / "published")
    assert folder.config.lm == WIDE.lm and folder.config.sampling.audio_top_k == 250
    wide = TensorFile(plain / "model.safetensors")
    plain_values = {name: wide.take(name).astype(mx.float16).astype(mx.float32) for name in wide.entries}
    mx.save_safetensors(str(tmp_path / "meant.safetensors"), plain_values | meant)
    wanted = parameters(load_lm(tmp_path / "meant.safetensors", WIDE.lm, dtype=mx.float32))
    found = parameters(folder.load_lm(dtype=mx.float32))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert float(mx.abs(found[name] - array).max()) <= 1e-6, name
    packed = load_lm(
        folder.open_lm(), WIDE.lm, quantization=folder.config.quantization, dtype=mx.bfloat16, unpack=False
    )
    assert {array.dtype for array in parameters(packed).values()} == {mx.bfloat16, mx.uint32}


class WithTinyCodec(ModelFolder):
    """Their config.json names no codec but the real one."""

    @property
    def config(self) -> ModelConfig:
        return dataclasses.replace(super().config, mimi=WIDE.mimi)


@pytest.mark.parametrize(("how", "scales"), [(QuantizationConfig.uniform(4, 64), "F16"), (None, None)])
def test_they_are_converted_without_another_loss(
    plain: Path, tmp_path: Path, how: QuantizationConfig | None, scales: str | None
) -> None:
    write_published(plain / "model.safetensors", tmp_path / "published", WIDE, 4)
    for path in plain.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "published")
    source = WithTinyCodec(tmp_path / "published")
    config = result_config(source.config, how, keep_user_steps=False, trim_codec=False)
    convert(source, tmp_path / "out", config, Provenance("x", "", "", ""))
    found = ModelFolder(tmp_path / "out")
    entry = found.open_lm().entries.get("transformer.layers.0.self_attn.in_proj_scales")
    assert (entry.dtype if entry else None) == scales
    before, after = (parameters(each.load_lm(dtype=mx.bfloat16)) for each in (source, found))
    assert before.keys() == after.keys() and all(same(after[name], array) for name, array in before.items())


def test_their_voices_are_read(tmp_path: Path) -> None:
    embeddings, ring = mx.ones((51, 1, 1, 64), mx.float16), mx.arange(68, dtype=mx.float32).reshape(1, 17, 4)
    mx.save_safetensors(str(tmp_path / "NATF0.safetensors"), {"embeddings": embeddings, "cache": ring})
    voice = voice_from_file(tmp_path / "NATF0.safetensors")
    assert voice.embeddings is not None and voice.embeddings.shape == (51, 64)
    assert voice.ring is not None and voice.ring.dtype == np.int32 and voice.ring[16, 3] == 67


def test_a_part_that_is_missing_or_misnamed_is_named(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "published"
    write_published(plain / "model.safetensors", out, WIDE, 4)
    (out / "depformer.safetensors").rename(out / "depformer.old")
    with pytest.raises(CheckpointError, match=r"holds no depformer\.safetensors"):
        ModelFolder(out).load_lm()
    (out / "depformer.old").rename(out / "depformer.safetensors")
    loaded = mx.load(str(out / "temporal.safetensors"))
    assert isinstance(loaded, dict)
    loaded["layers.0.self_attn.in_proj.scales"] = loaded.pop("layers.0.self_attn.in_proj_scales")
    mx.save_safetensors(str(out / "temporal.safetensors"), loaded)
    with pytest.raises(CheckpointError, match=r"'transformer\.layers\.0\.self_attn\.in_proj_scales' .* is missing"):
        ModelFolder(out).load_lm()


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        (None, {"colour": 1}, "unknown field 'colour'"),
        ("temporal", {"dim": "big"}, "temporal.dim: expected int"),
        ("depformer", {"dim": 768, "dim_feedforward": 2048}, "no block of 768 channels is that wide"),
        ("depformer", {"weights_per_step": False}, "depformer.weights_per_step is False"),
        ("depformer", {"num_steps": 12}, "dep_q is 12"),
        ("quantization", {"quantized_components": ["mouth"]}, "unknown part 'mouth'"),
    ],
)
def test_a_config_that_says_something_else_is_refused(
    tmp_path: Path, part: str | None, changes: dict[str, object], says: str
) -> None:
    data = published_config(LMConfig(), 4)
    if part is None:
        data |= changes
    else:
        inner = data[part]
        assert isinstance(inner, dict)
        data[part] = inner | changes
    (tmp_path / "config.json").write_text(json.dumps(data))
    (tmp_path / "temporal.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        _ = ModelFolder(tmp_path).config
    assert says in str(caught.value) and "config.json" in str(caught.value)


def test_the_published_config_is_the_7b(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_config(LMConfig(), 8)))
    (tmp_path / "temporal.safetensors").write_bytes(b"")
    config = ModelFolder(tmp_path).config
    assert config.lm == LMConfig() and config.mimi == ModelConfig().mimi
    assert config.quantization is not None and config.quantization.temporal.bits == 8
    assert config.quantization.of("heads", "text_linear.weight") is None
