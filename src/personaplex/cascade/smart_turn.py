"""Smart Turn: a small network that hears whether a turn is over or the user only pauses. Version 3, by ONNX Runtime.

The model is Pipecat's (BSD-2-Clause, 8 MB, 23 languages) and comes from the Hub, or is a file. It hears the last 8 s of
a turn as Whisper's feature extractor shows them. The recipe is Smart Turn's own: README of pipecat-ai/smart-turn
("Notes on input format"), `transformers.WhisperFeatureExtractor(chunk_length=8)` with `do_normalize`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr

from personaplex.cascade.engine import EngineSpec
from personaplex.errors import EngineError
from personaplex.units import SAMPLE_RATE

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

REPO, FILE = "pipecat-ai/smart-turn-v3", "smart-turn-v3.2-cpu.onnx"
RATE = 16_000
SECONDS = 8
INPUT = "input_features"

_WINDOW, _HOP, _N_MELS = 400, 160, 80
N_FRAMES = SECONDS * RATE // _HOP


class SmartTurn:
    """The network. `model`: an ONNX file; default the one of `REPO`, which is downloaded once.

    Raises EngineError for a file that is missing or is another network.
    """

    def __init__(self, model: str | None = None) -> None:
        path = Path(model).expanduser() if model else _from_hub()
        if not path.is_file():
            raise EngineError(f"Smart Turn's model {path} is no file; expected {FILE} of https://huggingface.co/{REPO}")
        self._session = _open(path)
        inputs = {node.name: node.shape for node in self._session.get_inputs()}
        if list(inputs) != [INPUT] or list(inputs[INPUT][1:]) != [_N_MELS, N_FRAMES]:
            raise EngineError(
                f"{path} is not Smart Turn v3: it takes {inputs}, expected {INPUT} of [batch, {_N_MELS}, {N_FRAMES}]"
            )

    def probability(self, pcm: np.ndarray) -> float:
        """Probability that a turn is over of which float32 [S] at 24 kHz are the last seconds."""
        heard = soxr.resample(pcm[-SECONDS * SAMPLE_RATE :], SAMPLE_RATE, RATE)
        try:
            (found, *_) = self._session.run(None, {INPUT: log_mel(heard)[None]})
        except Exception as error:  # ONNX Runtime has errors of its own, without a common root
            raise EngineError(f"Smart Turn failed: {error}") from error
        return float(np.asarray(found, np.float32).flat[0])


def _open(path: Path) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1  # beside a conversation, and soon done
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{path} cannot be read as an ONNX model: {' '.join(str(error).split())[:200]}") from error


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPO, FILE))
    except Exception as error:  # what the Hub's client raises differs from release to release
        raise EngineError(
            f"Smart Turn's model is not here, and could not be fetched from the Hub ({type(error).__name__}); "
            f"download {FILE} of https://huggingface.co/{REPO} and name it: --end-of-turn smart:FILE"
        ) from error


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """Whisper's features of the last 8 s of float32 [S] at 16 kHz: [80, 800]. What is shorter is padded before.

    Zero mean and unit variance; windows of 25 ms every 10 ms; 80 bands on Slaney's scale; decimal logarithm, with a
    floor 8 below the loudest.
    """
    n = SECONDS * RATE
    pcm = np.pad(pcm[-n:].astype(np.float32), (max(0, n - len(pcm)), 0))
    pcm = (pcm - pcm.mean()) / np.sqrt(pcm.var() + 1e-7)
    padded = np.pad(pcm.astype(np.float64), _WINDOW // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:N_FRAMES]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW + 1)[:-1])) ** 2
    logs = np.log10(np.maximum(power @ _bands(), 1e-10)).T
    return np.asarray((np.maximum(logs, logs.max() - 8) + 4) / 4, np.float32)


@cache
def _bands() -> np.ndarray:
    """Triangles [201, 80], each of unit area, evenly spaced in mels as Slaney's toolbox has them."""
    linear, step = 200 / 3, np.log(6.4) / 27  # Hz a mel below 1 kHz (15 mels), and the logarithm's step above
    mels = np.linspace(0, 15 + np.log(RATE / 2 / 1000) / step, _N_MELS + 2)
    edges = np.where(mels < 15, linear * mels, 1000 * np.exp(step * (mels - 15)))
    bins = np.linspace(0, RATE / 2, _WINDOW // 2 + 1)[:, None]
    up, down = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.asarray(np.maximum(0, np.minimum(up, down)) * 2 / (edges[2:] - edges[:-2]))


ENGINE = EngineSpec(
    "smart",
    "end of turn",
    SmartTurn,
    "Smart Turn v3 by Pipecat: hears whether a turn is over, in 23 languages",
    "pip install 'personaplex-mlx[smart-turn]'",
    "BSD-2-Clause (model); MIT (ONNX Runtime)",
    modules=("onnxruntime",),
    remark=f"its model is {FILE} of {REPO}, or a file: smart:FILE; not run with real weights",
)
