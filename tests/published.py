"""A writer of the published layout (`checkpoint/published.py`), after the rules of the converter that made it.

Scales are the plain range of a group, computed in float32 and rounded to float16 after the codes were chosen.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.load import Expected, expected_tensors
from personaplex.checkpoint.packing import packed_names
from personaplex.checkpoint.rules import lm_rules
from personaplex.checkpoint.tensors import Entry, TensorFile
from personaplex.checkpoint.writer import TensorWriter
from personaplex.config import LMConfig, ModelConfig, QuantizationConfig

GROUP = 64


def place(name: str) -> tuple[str, str]:
    """The file that holds the reference's tensor `name`, and its name there."""
    top = name.split(".", maxsplit=1)[0]
    if top in ("transformer", "out_norm"):
        return "temporal.safetensors", name.removeprefix("transformer.")
    if top in ("depformer", "depformer_in"):
        return "depformer.safetensors", name.removeprefix("depformer.")
    return "embeddings.safetensors", name


def layout(config: LMConfig, bits: int) -> dict[str, dict[str, Entry]]:
    """What each file holds: everything that is not packed is float16."""
    files: dict[str, dict[str, Entry]] = {}
    expected: Expected = expected_tensors(lm_rules(config, config.dep_q), QuantizationConfig.uniform(bits, GROUP))
    for name, about in expected.items():
        file, theirs = place(name)
        files.setdefault(file, {})[theirs] = about if isinstance(about, Entry) else Entry("F16", about)
    return files


def write_published(source: Path, out: Path, config: ModelConfig, bits: int) -> dict[str, mx.array]:
    """Write the language model `source` to the folder `out`; returns what the packed tensors stand for, in float32."""
    out.mkdir()
    files, meant = layout(config.lm, bits), {}
    tensors = TensorFile(source)
    writers = {name: TensorWriter(out / name, entries) for name, entries in files.items()}
    for name in list(tensors.entries):
        file, theirs = place(name)
        value = tensors.take(name).astype(mx.float32)
        if f"{theirs.removesuffix('weight')}scales" not in files[file]:
            writers[file].put(theirs, value.astype(mx.float16))
            continue
        groups = np.array(value).reshape(value.shape[0], -1, GROUP)
        low, most = groups.min(-1, keepdims=True), (1 << bits) - 1
        scales = np.maximum((groups.max(-1, keepdims=True) - low) / most, 1e-8)
        codes = np.clip(np.round((groups - low) / scales), 0, most).astype(np.uint32)
        scales, low = scales.astype(np.float16), low.astype(np.float16)
        meant[name] = mx.array((codes * scales.astype(np.float32) + low).reshape(value.shape).astype(np.float32))
        per_word = 32 // bits
        words = codes.reshape(value.shape[0], -1, per_word) << (bits * np.arange(per_word, dtype=np.uint32))
        packed = (words.sum(-1, dtype=np.uint32), scales[..., 0], low[..., 0])
        for part, array in zip(packed_names(theirs), packed, strict=True):
            writers[file].put(part, mx.array(array))
    for writer in writers.values():
        with writer:
            writer.finish()
    (out / "config.json").write_text(json.dumps(published_config(config.lm, bits)))
    return meant


def published_config(lm: LMConfig, bits: int) -> dict[str, object]:
    """Their config.json for a model of these sizes."""
    both = {"card": lm.card, "text_card": lm.text_card}
    return {
        "model_type": "personaplex", "version": "personaplex-7b-v1", "base_model": "kyutai/moshiko-pytorch-bf16",
        "temporal": both | {
            "dim": lm.dim, "num_layers": lm.num_layers, "num_heads": lm.num_heads, "hidden_scale": lm.hidden_scale,
            "n_q": 8, "context": lm.context, "max_period": 10000,
        },
        "depformer": both | {
            "dim": lm.depformer_dim, "num_layers": lm.depformer_num_layers, "num_heads": lm.depformer_num_heads,
            "dim_feedforward": lm.depformer_hidden, "num_steps": lm.dep_q, "context": 8,
            "weights_per_step": True, "multi_linear": True,
        },
        "mimi": {
            "sample_rate": 24000, "frame_rate": 12.5, "num_codebooks": 16, "codebook_size": 2048, "codebook_dim": 256,
            "dimension": 512, "seanet_ratios": [8, 6, 5, 4], "transformer_layers": 8,
        },
        "sampling": {"audio_temp": 0.8, "audio_top_k": 250, "text_temp": 0.7, "text_top_k": 25},
        "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
        "quantization": {"bits": bits, "group_size": GROUP, "quantized_components": ["temporal", "depformer"]},
        "voices": ["NATF0"],
    }  # fmt: skip
