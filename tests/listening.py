"""A random model that listens as a trained one does: it is nearly always sure to say no word."""

from __future__ import annotations

import dataclasses
import runpy
import shutil
from pathlib import Path

import mlx.core as mx

from personaplex.checkpoint.load import expected_tensors
from personaplex.checkpoint.rules import lm_rules
from personaplex.config import LMConfig, ModelConfig
from tests.conftest import PARITY

ROOT = Path(__file__).parents[1]
CONFIG = dataclasses.replace(
    ModelConfig.read(PARITY / "config.json"),
    lm=LMConfig(
        dim=64, text_card=320, num_heads=2, num_layers=3, hidden_scale=3.0, context=40, depformer_dim=64,
        depformer_dim_feedforward=192, depformer_num_heads=2, depformer_num_layers=2, dep_q=8,
    ),
)  # fmt: skip
PULL = 9.0


def write_model(folder: Path, *, listens: bool) -> Path:
    """Write one of width 64, as `scripts/random_checkpoint.py` does, or with a pull of the text to padding."""
    folder.mkdir()
    script = runpy.run_path(str(ROOT / "scripts" / "random_checkpoint.py"))
    path = folder / "model.safetensors"
    script["write_random"](path, expected_tensors(lm_rules(CONFIG.lm, 8)), mx.bfloat16)
    if listens:
        tensors = mx.load(str(path))
        assert isinstance(tensors, dict)
        # Every column has one direction in common, and the head takes it for padding.
        direction = mx.where(mx.arange(64) % 2 == 0, 1.0, -1.0)
        tensors["text_emb.weight"] = tensors["text_emb.weight"] + 0.2 * direction.astype(mx.bfloat16)
        pad = CONFIG.lm.existing_text_padding_id
        head = tensors["text_linear.weight"].astype(mx.float32)
        tensors["text_linear.weight"] = head.at[pad].add(PULL / 64 * direction).astype(mx.bfloat16)
        mx.save_safetensors(str(path), tensors)
    for source in PARITY.glob("tokenizer*"):
        shutil.copy(source, folder)
    (folder / "config.json").write_text(CONFIG.to_json())
    return folder
