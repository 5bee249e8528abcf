"""Write a model folder of any size with random weights, in the reference's layout.

`python scripts/random_checkpoint.py OUT` makes one of PersonaPlex 7B's size (16.7 GB): for loading and timing without
access to the real weights. `--config config.json` takes another size.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import personaplex  # noqa: F401 - before mlx, for its BLAS

import mlx.core as mx  # isort: skip

from personaplex.checkpoint.load import Expected, expected_tensors
from personaplex.checkpoint.rules import lm_rules, mimi_rules
from personaplex.config import ModelConfig


def random_tensors(expected: Expected, dtype: mx.Dtype, scale: float) -> dict[str, mx.array]:
    """A value for every name; norms are ones and usage counts are one, so that activations stay finite."""
    tensors = {}
    for i, (name, shape) in enumerate(expected.items()):
        assert isinstance(shape, tuple)
        steady = name.endswith(("alpha", "norm1.weight", "norm2.weight", "cluster_usage", "_initialized"))
        value = mx.ones(shape) if steady else scale * mx.random.normal(shape, key=mx.random.key(i))
        tensors[name] = value.astype(dtype)
        mx.eval(tensors[name])
    return tensors


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, help="a config.json (default: the 7B)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = ModelConfig()
    if arguments.config:
        config = ModelConfig.read(arguments.config)
        shutil.copy(arguments.config, arguments.out / "config.json")
    files = {
        "model.safetensors": (lm_rules(config.lm, 8), mx.bfloat16),
        "tokenizer-e351c8d8-checkpoint125.safetensors": (mimi_rules(config.mimi), mx.float32),
    }
    for name, (rules, dtype) in files.items():
        mx.save_safetensors(str(arguments.out / name), random_tensors(expected_tensors(rules), dtype, 0.02))


if __name__ == "__main__":
    main()
