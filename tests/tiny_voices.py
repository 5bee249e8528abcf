"""Voices of Piper and Kokoro with nothing learned in them: each symbol sounds as its number, so that it can be read.

`python -m tests.tiny_voices FOLDER` writes them. The graphs have the real ones' inputs, outputs, types and shapes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

SYMBOL_SAMPLES = 320
"""How long one symbol sounds."""

LOUDNESS = 512
"""Symbol `k` is `k / LOUDNESS` loud."""

KOKORO_RATE, PIPER_RATE = 24_000, 22_050
STYLES = 510


def write_piper(folder: Path, name: str = "en_US-tiny-low", speakers: tuple[str, ...] = (), **changes: Any) -> Path:
    """NAME.onnx and NAME.onnx.json; of two speakers, the second sounds upside down. `changes` are the description's."""
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    nodes, gain = _table("input"), np.ones(1, np.float32)
    if speakers:
        inputs.append(helper.make_tensor_value_info("sid", TensorProto.INT64, ["batch"]))
        gain = np.array([1, -1], np.float32)
        nodes += [helper.make_node("Gather", ["gain", "sid"], ["own"])]
    nodes += [
        helper.make_node("Mul", ["sound", "own" if speakers else "gain"], ["louder"]),
        helper.make_node("Reshape", ["louder", "shape"], ["output"]),
    ]
    weights: dict[str, np.ndarray] = {"gain": gain, "shape": np.array([1, 1, 1, -1], np.int64)}
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1, 1, "time"])
    path = folder / f"{name}.onnx"
    _save(path, nodes, inputs, output, weights)
    about = {
        "audio": {"sample_rate": PIPER_RATE, "quality": "low"},
        "espeak": {"voice": "en-us"},
        "language": {"code": "en_US", "family": "en"},
        "phoneme_type": "espeak",
        "num_symbols": 256,
        "num_speakers": max(len(speakers), 1),
        "speaker_id_map": {speaker: i for i, speaker in enumerate(speakers)},
        "phoneme_id_map": DEFAULT_PHONEME_ID_MAP,
        "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8},
    }
    Path(f"{path}.json").write_text(json.dumps(about | changes))
    return path


def write_kokoro(folder: Path, voices: tuple[str, ...] = ("af_heart", "bm_george", "ff_siwis")) -> Path:
    """kokoro-v1.0.onnx and voices-v1.0.bin."""
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "tokens"]),
        helper.make_tensor_value_info("style", TensorProto.FLOAT, [1, 256]),
        helper.make_tensor_value_info("speed", TensorProto.FLOAT, [1]),
    ]
    nodes = [
        *_table("tokens"),
        helper.make_node("ReduceMax", ["style"], ["loudness"], keepdims=0),
        helper.make_node("Mul", ["sound", "loudness"], ["louder"]),
        helper.make_node("Reshape", ["louder", "shape"], ["audio"]),
    ]
    output = helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["time"])
    path = folder / "kokoro-v1.0.onnx"
    _save(path, nodes, inputs, output, {"shape": np.array([-1], np.int64)})
    with (folder / "voices-v1.0.bin").open("wb") as file:
        styles: dict[str, Any] = {v: np.full((STYLES, 1, 256), 0.5**i, np.float32) for i, v in enumerate(voices)}
        np.savez(file, **styles)
    return path


def _table(symbols: str) -> list[onnx.NodeProto]:
    return [helper.make_node("Gather", ["table", symbols], ["sound"])]


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    weights: dict[str, np.ndarray],
) -> None:
    loudness = np.arange(256, dtype=np.float32) / LOUDNESS
    weights = {"table": np.repeat(loudness[:, None], SYMBOL_SAMPLES, axis=1), **weights}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def symbols(pcm: np.ndarray) -> list[int]:
    """The numbers of the symbols in a sound [S] that was not made louder or softer."""
    return [round(float(level) * LOUDNESS) for level in pcm[SYMBOL_SAMPLES // 2 :: SYMBOL_SAMPLES]]


if __name__ == "__main__":
    write_piper(Path(sys.argv[1]))
    write_kokoro(Path(sys.argv[1]))
