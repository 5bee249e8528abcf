"""Mimi from Hugging Face's `MimiModel`: the same codes as transformers computes, and as the Moshi layout gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import expected_tensors
from personaplex.checkpoint.rules import mimi_rules
from personaplex.checkpoint.transformers_mimi import _renamed, read_mimi_config, transformers_mimi_rules
from personaplex.cli.main import main
from personaplex.config import MimiConfig
from personaplex.errors import CheckpointError, ConfigError
from personaplex.models.mimi import Mimi
from tests.conftest import FIXTURES, PARITY, edit_config, peak_error, read_expected

FOLDER = FIXTURES / "transformers-mimi"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "mimi"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / name, folder / name)
    return folder


def stored(path: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    mx.eval(loaded)
    return loaded


def check(mimi: Mimi) -> None:
    expected = read_expected(FOLDER)
    codes = mimi.encode(expected["pcm"])
    assert codes.shape == (1, 8, 14) and mx.array_equal(codes, expected["codes"]).item()
    assert len(np.unique(np.array(codes))) > 30, "a codec that always says the same proves nothing"
    assert peak_error(mimi.decode(codes), expected["decoded"]) < 1e-5


def test_the_codes_and_the_sound_are_those_of_transformers() -> None:
    check(ModelFolder(FOLDER).load_mimi())


def test_weight_norms_of_both_kinds_are_multiplied_out(copy: Path) -> None:
    shutil.copy(FOLDER / "normed.safetensors", copy / "model.safetensors")
    names = stored(copy / "model.safetensors")
    assert "encoder.layers.0.conv.weight" not in names
    assert any(n.endswith("weight_g") for n in names) and any(n.endswith("original0") for n in names)
    check(ModelFolder(copy).load_mimi())


def test_every_tensor_of_a_codec_of_the_real_size_has_its_place() -> None:
    """318 tensors in the Moshi layout; two more for each attention, whose queries, keys and values are apart."""
    keys = json.loads((FIXTURES / "keys_transformers_mimi.json").read_text())
    assert expected_tensors(transformers_mimi_rules(MimiConfig(), ())) == {k: tuple(v) for k, v in keys.items()}
    assert len(keys) == 318 + 2 * 2 * 8
    assert read_mimi_config({"model_type": "mimi"}, "config.json") == MimiConfig()


def test_the_same_codec_in_either_layout_gives_the_same_codes(tmp_path: Path, speech: np.ndarray) -> None:
    """The tiny model's Mimi, written as transformers would (its published conversion), against itself."""
    config, ours = ModelFolder(PARITY).config.mimi, stored(next(PARITY.glob("tokenizer-*.safetensors")))
    heads, theirs = config.transformer.num_heads, {}
    for rule in mimi_rules(config):
        for name in rule.sources:
            if not name.endswith("in_proj_weight"):
                theirs[_renamed(name)] = ours[name]
                continue
            for letter, part in zip("qkv", mx.split(ours[name], 3), strict=True):
                if letter != "v":
                    part = part.reshape(heads, -1, 2, part.shape[1]).swapaxes(1, 2).reshape(part.shape)
                theirs[_renamed(name).replace("in_proj_weight", f"{letter}_proj.weight")] = part
    mx.save_safetensors(str(tmp_path / "model.safetensors"), theirs)
    c = config
    about = {
        "model_type": "mimi", "hidden_size": c.seanet.dimension, "num_filters": c.seanet.n_filters,
        "upsample_groups": c.seanet.dimension, "num_attention_heads": heads, "num_key_value_heads": heads,
        "head_dim": c.transformer.d_model // heads, "num_hidden_layers": c.transformer.num_layers,
        "intermediate_size": c.transformer.dim_feedforward, "sliding_window": c.transformer.context,
        "codebook_dim": c.quantizer.dimension, "vector_quantization_hidden_dimension": c.quantizer.dimension,
        "codebook_size": c.quantizer.bins, "num_quantizers": c.quantizer.n_q, "frame_rate": 12.5,
        "upsampling_ratios": list(c.seanet.ratios), "rope_theta": 10000.0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(about))
    pcm = mx.array(speech)[None]
    found, wanted = ModelFolder(tmp_path).load_mimi().encode(pcm), ModelFolder(PARITY).load_mimi().encode(pcm)
    assert mx.array_equal(found, wanted).item()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_causal_conv": False}, "use_causal_conv is False; only True"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_size": "24"}, "hidden_size: expected a whole number"),
        ({"num_filters": 0}, "num_filters: expected a whole number from 1 on, found 0"),
        ({"upsampling_ratios": [8, 6, 7]}, "ratios multiply to 336"),
        ({"upsampling_ratios": 8}, "upsampling_ratios: expected a list"),
        ({"num_key_value_heads": 1}, "3 heads of 8"),
        ({"num_quantizers": 3}, "num_codebooks is 8; the quantiser has 3"),
        ({"upsample_groups": 1}, "upsample_groups is 1"),
        ({"codebook_size": 63}, "has shape"),
    ],
)
def test_a_config_that_disagrees_is_named(copy: Path, changes: dict[str, object], says: str) -> None:
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=says):
        ModelFolder(copy).load_mimi()


def test_tensors_that_are_missing_unknown_or_cut_are_named(copy: Path) -> None:
    tensors = stored(copy / "model.safetensors")
    mx.save_safetensors(str(copy / "model.safetensors"), tensors | {"encoder.layers.0.conv.weight_g": mx.zeros(1)})
    with pytest.raises(CheckpointError, match=r"conv\.weight_g' has shape \[1\], expected \[4, 1, 1\]"):
        ModelFolder(copy).load_mimi()
    mx.save_safetensors(str(copy / "model.safetensors"), tensors | {"extra": mx.zeros(1)})
    with pytest.raises(CheckpointError, match="unknown tensor 'extra'"):
        ModelFolder(copy).load_mimi()
    del tensors["downsample.conv.weight"]
    mx.save_safetensors(str(copy / "model.safetensors"), tensors)
    with pytest.raises(CheckpointError, match=r"'downsample\.conv\.weight' .* is missing"):
        ModelFolder(copy).load_mimi()
    (copy / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cut short"):
        ModelFolder(copy).load_mimi()


def test_a_codec_alone_is_no_model_to_talk_with() -> None:
    with pytest.raises(CheckpointError, match=r"holds Mimi alone, which `personaplex codec` takes.*these work: nano"):
        _ = ModelFolder(FOLDER).config
    with pytest.raises(ConfigError, match=r"x\.rope_theta: expected a number, found None"):
        read_mimi_config({"rope_parameters": {"rope_theta": None}}, "x")


def test_the_codec_command_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "codes.safetensors"
    question = str(FIXTURES.parents[1] / "examples" / "question.wav")
    assert main(["codec", "encode", question, str(out), "--model", str(FOLDER)]) == 0
    assert stored(out)["codes"].shape[:2] == (1, 8)
    assert main(["codec", "decode", str(out), str(tmp_path / "x.wav"), "--model", str(FOLDER)]) == 0
