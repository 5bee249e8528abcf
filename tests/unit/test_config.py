"""A configuration is read strictly, and every refusal names the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personaplex.config import (
    LMConfig,
    MimiConfig,
    ModelConfig,
    Packing,
    PackingException,
    QuantizationConfig,
    from_json,
)
from personaplex.errors import ConfigError
from tests.conftest import PARITY


def written(path: Path, config: Any) -> Path:
    file = path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


def test_no_file_means_the_7b(tmp_path: Path) -> None:
    assert ModelConfig.read(tmp_path / "config.json") == ModelConfig()


def test_the_reference_repositorys_own_config_means_the_7b(tmp_path: Path) -> None:
    config = ModelConfig.read(written(tmp_path, {"model_type": "personaplex", "version": "7b-v1"}))
    assert config.lm == LMConfig() and config.mimi == MimiConfig()


def test_widths_of_the_7b() -> None:
    """Derived in the reference, so derived here (spec: 11264 and 2816)."""
    assert (LMConfig().hidden, LMConfig().depformer_hidden) == (11_264, 2_816)
    assert LMConfig(hidden_scale=4.0).hidden == 21 * 4096 // 8


def test_the_fixtures_config() -> None:
    config = ModelConfig.read(PARITY / "config.json")
    assert (config.lm.dim, config.lm.hidden, config.lm.context, config.mimi.seanet.dimension) == (16, 44, 200, 32)


LM = json.loads((PARITY / "config.json").read_text())["lm"]
MIMI = json.loads((PARITY / "config.json").read_text())["mimi"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
        ({"lm": LM | {"colour": 1}}, "unknown field 'colour'"),
        ({"lm": LM | {"dim": "big"}}, "lm.dim: expected int"),
        ({"lm": LM | {"dim": True}}, "lm.dim: expected int"),
        ({"lm": LM | {"norm": "layer_norm"}}, "norm is 'layer_norm'; only 'rms_norm_f32'"),
        ({"lm": LM | {"dep_q": 12}}, "dep_q is 12"),
        ({"lm": LM | {"delays": [0] * 17}}, "delays"),
        ({"lm": LM | {"num_heads": 3}}, "16 channels cannot be split into 3 heads"),
        ({"lm": LM | {"context": 0}}, "context is 0"),
        ({"lm": LM, "mimi": MIMI | {"sample_rate": 16000}}, "sample_rate is 16000"),
        ({"lm": LM, "mimi": MIMI | {"num_codebooks": 9}}, "num_codebooks is 9; the quantiser has 8"),
        ({"lm": LM | {"card": 100}, "mimi": MIMI}, "lm.card is 100 but the codec has 2048 bins"),
        ({"quantization": {"bits": 4}}, "'group_size' is missing"),
        ({"quantization": {"bits": 7, "group_size": 64}}, "bits is 7"),
        ({"quantization": {"bits": 4, "group_size": 64, "parts": ["mouth"]}}, "unknown field 'mouth'"),
        ({"quantization": {"temporal": {"bits": 9}}}, "bits is 9"),
        ({"quantization": {"temporal": {"bits": 4, "group_size": 48}}}, "group_size is 48"),
        ({"quantization": {"exceptions": [{"tensors": "emb.*"}]}}, "'bits' is missing"),
        ({"silence_codes": [1, 2]}, "silence_codes must hold 8"),
        ('{"lm": {"hidden_scale": Infinity}}', "Infinity is no number"),
        ("[" * 100_000, "cannot be read as JSON"),
        ({"lm": LM | {"max_period": 10**400}}, "max_period"),
        ({"lm": LM | {"max_period": 0}}, "max_period is 0"),
        ({"lm": LM | {"context": 2**31}}, "out of range"),
        ({"silence_codes": [-5] * 8}, "out of range"),
        ({"lm": LM, "mimi": MIMI | {"seanet": MIMI["seanet"] | {"compress": 0}}}, "at least 1"),
        ({"lm": LM, "mimi": MIMI | {"seanet": MIMI["seanet"] | {"ratios": [0, 1, 1, 1]}}}, "at least 1"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, config: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        ModelConfig.read(written(tmp_path, config))
    assert says in str(caught.value)


def test_both_forms_of_a_quantisation_are_read(tmp_path: Path) -> None:
    """The older one names parts of one width; today's says bits per part, and exceptions by the names of tensors."""
    old = ModelConfig.read(written(tmp_path, {"quantization": {"bits": 8, "group_size": 32, "parts": ["heads"]}}))
    new = ModelConfig.read(written(tmp_path, {"quantization": {"heads": {"bits": 8, "group_size": 32}}}))
    assert old == new and new.quantization is not None
    assert new.quantization.of("heads", "text_linear.weight") == Packing(8, 32)
    assert new.quantization.of("temporal", "transformer.layers.0.gating.linear_in.weight") is None


def test_the_last_exception_that_matches_counts() -> None:
    quantization = QuantizationConfig(
        temporal=Packing(4, 64),
        exceptions=(PackingException("transformer.layers.1.*", 8), PackingException("*.out_proj.weight", 16)),
    )
    found = [quantization.of("temporal", f"transformer.layers.{i}.self_attn.in_proj_weight") for i in (1, 11)]
    assert found == [Packing(8, 64), Packing(4, 64)]
    assert quantization.of("temporal", "transformer.layers.1.self_attn.out_proj.weight") is None


def test_the_depformer_context_is_read_and_ignored() -> None:
    assert from_json(LMConfig, LM | {"depformer_context": 4}, "lm").depformer_hidden == 44


@pytest.mark.parametrize("field", ["num_layers", "depformer_num_layers"])
def test_a_billion_layers_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 1000000000; it must be from 1 to 1024"):
        from_json(LMConfig, LM | {field: 1_000_000_000}, "lm")


def test_a_billion_layers_of_a_codec_are_refused() -> None:
    for part, field in (("transformer", "num_layers"), ("quantizer", "n_q")):
        with pytest.raises(ConfigError, match=f"{field} is 1000000000"):
            from_json(MimiConfig, MIMI | {part: MIMI[part] | {field: 1_000_000_000}}, "mimi")
