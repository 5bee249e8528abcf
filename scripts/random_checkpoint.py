"""Write a model folder of any size with random weights, in the reference's layout.

`python scripts/random_checkpoint.py OUT` makes one of PersonaPlex 7B's size (16.7 GB), tensor by tensor: for loading,
converting and timing without access to the real weights. `--config config.json` takes another size. Its tokenizer knows
made-up words, and it has no voices.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

import personaplex  # noqa: F401 - before mlx, for its BLAS

import mlx.core as mx  # isort: skip
from sentencepiece import SentencePieceTrainer

from personaplex.checkpoint.load import Expected, expected_tensors
from personaplex.checkpoint.rules import lm_rules, mimi_rules
from personaplex.checkpoint.tensors import Entry
from personaplex.checkpoint.writer import DTYPES, TensorWriter
from personaplex.config import ModelConfig

SCALE = 0.02


def write_random(path: Path, expected: Expected, dtype: mx.Dtype) -> None:
    """A value for every name; norms are ones and usage counts are one, so that activations stay finite."""
    entries = {name: Entry(DTYPES[dtype], shape) for name, shape in expected.items() if isinstance(shape, tuple)}
    with TensorWriter(path, entries) as writer:
        for i, (name, entry) in enumerate(entries.items()):
            steady = name.endswith(("alpha", "norm1.weight", "norm2.weight", "cluster_usage", "_initialized"))
            key = mx.random.key(i)
            writer.put(name, mx.ones(entry.shape, dtype) if steady else random(entry.shape, dtype, key))
        writer.finish()


def random(shape: tuple[int, ...], dtype: mx.Dtype, key: mx.array) -> mx.array:
    """Normally distributed values; in blocks of rows, because they are drawn in float32."""
    step = max(1, (1 << 24) // (mx.zeros(shape).size // shape[0]))
    counts = [min(step, shape[0] - i) for i in range(0, shape[0], step)]
    blocks = []
    for count, own in zip(counts, mx.random.split(key, len(counts)), strict=True):
        blocks.append((SCALE * mx.random.normal((count, *shape[1:]), key=own)).astype(dtype))
        mx.eval(blocks)
    return mx.concatenate(blocks)


def write_tokenizer(path: Path, n_pieces: int) -> None:
    """Special ids as in the real one, bytes as fallback, two letters, and words that stand for themselves."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=n_pieces,
        user_defined_symbols=[f"word{i}" for i in range(n_pieces - 4 - 256 - 2)],
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, help="a config.json (default: the 7B)")
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{arguments.out} cannot be made a folder ({error.strerror}); name another")
    config = ModelConfig()
    if arguments.config:
        config = ModelConfig.read(arguments.config)
        shutil.copy(arguments.config, arguments.out / "config.json")
    write_tokenizer(arguments.out / "tokenizer_spm_32k_3.model", config.lm.text_card)
    write_random(arguments.out / "model.safetensors", expected_tensors(lm_rules(config.lm, 8)), mx.bfloat16)
    codec = arguments.out / "tokenizer-e351c8d8-checkpoint125.safetensors"
    write_random(codec, expected_tensors(mimi_rules(config.mimi)), mx.float32)


if __name__ == "__main__":
    main()
