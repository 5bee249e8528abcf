"""A random model wide enough for groups of 32 and 64: the 475 names of the 7B at width 64.

The tiny reference model is 16 wide, and MLX packs no fewer than 32 values. Its codec, tokenizer and voice
serve here too.
"""

from __future__ import annotations

import dataclasses
import runpy
import shutil
from pathlib import Path

import mlx.core as mx

from personaplex.checkpoint.load import expected_tensors
from personaplex.checkpoint.rules import lm_rules
from personaplex.checkpoint.store import write_config
from personaplex.config import LMConfig, ModelConfig
from tests.conftest import PARITY

ROOT = Path(__file__).parents[1]
_PARITY = ModelConfig.read(PARITY / "config.json")
WIDE = dataclasses.replace(
    _PARITY,
    lm=LMConfig(
        dim=64, text_card=320, num_heads=2, hidden_scale=3.0, context=200, depformer_dim=64,
        depformer_dim_feedforward=192, depformer_num_heads=2,
    ),
)  # fmt: skip


def write_wide(folder: Path) -> Path:
    """Write it, with the script that makes the 7B's size; returns `folder`."""
    script = runpy.run_path(str(ROOT / "scripts" / "random_checkpoint.py"))
    expected = expected_tensors(lm_rules(WIDE.lm, 8))
    script["write_random"](folder / "model.safetensors", expected, mx.bfloat16)
    for path in PARITY.glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "voices").mkdir()
    shutil.copy(PARITY / "voices" / "VOICE0.pt", folder / "voices")
    write_config(folder / "config.json", WIDE)
    return folder
