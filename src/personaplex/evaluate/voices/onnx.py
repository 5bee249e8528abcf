"""A network that knows speakers, by ONNX Runtime: one that takes samples at 16 kHz, as WavLM with x-vectors does.

Exports of `transformers`' WavLMForXVector fit (`input_values` in, `embeddings` out). Networks that take filter banks
instead (most ECAPA-TDNN and ResNet exports) need those computed as they were trained with: give such a network as
`module:attribute`, with its own front end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soxr

from personaplex.errors import EngineError
from personaplex.units import SAMPLE_RATE

RATE = 16_000
LOUDNESS = 0.06
"""Root mean square that speech is brought to (-24 dBFS): how loud somebody is does not tell who it is."""


class OnnxEmbedding:
    """The network in `path`. Raises EngineError for a file that is missing, is no network, or takes other than samples.

    Its first input is samples [1, S]; further ones of the same shape are masks, all ones. Its embedding is the output
    whose name begins with "emb" or "xvector", else the last one that is a vector.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise EngineError(f"the embedding {path} is no file; expected an ONNX network that takes samples at 16 kHz")
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(
                "onnxruntime is not installed; `pip install onnxruntime` (or personaplex-mlx[evaluate])"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has errors of its own, without a common root
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"{path} cannot be read as an ONNX network: {reason}") from error
        self._inputs = [(node.name, node.type) for node in self._session.get_inputs()]
        shapes = {node.name: node.shape for node in self._session.get_inputs()}
        if any(len(shape) != 2 for shape in shapes.values()) or self._inputs[0][1] != "tensor(float)":
            raise EngineError(f"{path} takes {shapes}; expected samples [batch, samples] of floats at 16 kHz")
        vectors = [node.name for node in self._session.get_outputs() if len(node.shape) == 2]
        named = [name for name in vectors if name.lower().startswith(("emb", "xvector"))]
        if not vectors:
            raise EngineError(f"{path} gives no output [batch, dimensions]; expected an embedding")
        self._output = (named or vectors)[-1]

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        """Speech [S] at 24 kHz -> vector [D]. Raises EngineError when the network fails, as for too little of it."""
        heard = soxr.resample(np.asarray(pcm, np.float32), SAMPLE_RATE, RATE)
        heard = heard - heard.mean()
        heard = heard * (LOUDNESS / max(1e-6, float(np.sqrt(np.mean(np.square(heard))))))
        feed: dict[str, np.ndarray] = {self._inputs[0][0]: heard[None].astype(np.float32)}
        for name, kind in self._inputs[1:]:
            feed[name] = np.ones((1, len(heard)), np.float32 if kind == "tensor(float)" else np.int64)
        try:
            (found,) = self._session.run([self._output], feed)
        except Exception as error:
            raise EngineError(f"the embedding network failed: {' '.join(str(error).split())[:200]}") from error
        return np.asarray(np.asarray(found, np.float64)[0])
