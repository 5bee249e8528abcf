"""How many kernels a frame is on a Mac, counted here from its graph; a regression fails before anybody has to wait.

Nothing of it runs: the 7B's structure (32 layers, 8 steps of 6 layers, all of Mimi) at a small width is asked for a
step as if on a GPU, and its operations are counted before they are evaluated. MLX builds what is one kernel on a GPU
(`mx.fast`) out of many on a CPU, so those are stood in for by one operation each. What launches nothing is
`personaplex.bench.graph.VIEWS`. The bounds are what it is today and a little more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from personaplex.bench.demand import of_step
from personaplex.bench.graph import n_kernels
from personaplex.bench.weights import random_model
from personaplex.checkpoint.load import blank_lm
from personaplex.checkpoint.recipe import quantization
from personaplex.config import CodecTransformerConfig, LMConfig, MimiConfig, ModelConfig, QuantizerConfig, SeanetConfig
from personaplex.engine.duplex import Duplex, DuplexState
from personaplex.engine.generator import Generator
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.nn.state import arrays
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS

SEVEN = LMConfig()
THIN = ModelConfig(
    lm=LMConfig(dim=64, num_heads=2, hidden_scale=3.0, text_card=64, card=64, depformer_dim=64,
                depformer_dim_feedforward=192, depformer_num_heads=2, context=20),
    mimi=MimiConfig(
        seanet=SeanetConfig(dimension=16, n_filters=2),
        transformer=CodecTransformerConfig(d_model=16, num_heads=2, dim_feedforward=32, context=20, input_dimension=16,
                                           output_dimensions=(16,)),
        quantizer=QuantizerConfig(dimension=8, n_q=8, bins=64, input_dimension=16, output_dimension=16),
        num_codebooks=8,
    ),
    silence_codes=(1,) * N_CODEBOOKS,
    sine_codes=(2,) * N_CODEBOOKS,
)  # fmt: skip
"""As many layers and steps as the 7B, and all that Mimi has."""


class Count(NamedTuple):
    """Kernels of the language model's step, and of a whole frame with the codec and what the host reads of it."""

    step: int
    frame: int


class Gpu:
    """What a device says that is a GPU."""

    type = mx.DeviceType.gpu


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every choice between CPU and GPU is made as on a GPU without CUDA; nothing may be evaluated meanwhile."""

    def one_kernel(x: mx.array, *others: Any, **more: Any) -> mx.array:
        needed = [value for value in (*others, *more.values()) if isinstance(value, mx.array)]
        result = mx.cumsum(x, axis=-1)  # of the same shape, and never fused with another
        return mx.depends([result], needed)[0] if needed else result

    with monkeypatch.context() as patch:
        for name in ("rms_norm", "layer_norm", "rope", "scaled_dot_product_attention"):
            patch.setattr(mx.fast, name, one_kernel)
        patch.setattr(mx, "default_device", Gpu)
        yield


def counted(bits: int, kv_bits: int, compiled: bool) -> Count:
    """The kernels of one caller's frame."""
    model = random_model(THIN, bits, compiled)
    model.lm.set_dtype(mx.bfloat16)
    generator = Generator(model.lm, THIN, kv_bits=kv_bits)
    ceiling, spare = Ceiling.over(Sampling()), generator.spare_frames
    state = DuplexState(
        model.mimi.init_encoder(1, spare),
        generator.begin(None, sampling=Sampling())[1],
        model.mimi.init_decoder(1, spare),
    )
    pcm, user = mx.zeros((1, FRAME_SAMPLES)), mx.zeros((1, N_CODEBOOKS), mx.int32)
    mx.eval(arrays(state), pcm, user)

    def step(user: mx.array, state: Any) -> Any:
        result, after = generator.step(user, state, ceiling)
        return result.tokens, after

    call = mx.compile(step) if compiled else step
    frame = Duplex(model.mimi, generator, ceiling, compiled=compiled).step(pcm, state)
    return Count(n_kernels(call(user, state.generator)), n_kernels(frame[0].readout, frame[1]))


@pytest.mark.parametrize(
    ("bits", "kv_bits", "compiled", "most"),
    [
        (16, 16, False, Count(1300, 1840)),
        (16, 16, True, Count(1140, 1525)),
        (8, 16, True, Count(1140, 1525)),
        (8, 8, True, Count(1590, 1970)),
    ],
)
@pytest.mark.usefixtures("on_a_mac")
def test_a_frame_has_no_more_kernels_than_it_had(bits: int, kv_bits: int, compiled: bool, most: Count) -> None:
    found = counted(bits, kv_bits, compiled)
    products = THIN.lm.num_layers * 4 + 8 * THIN.lm.depformer_num_layers * 4
    assert products < found.step <= most.step, "fewer than its products would be a counter that counts nothing"
    assert found.step + 200 < found.frame <= most.frame


@pytest.mark.parametrize(("bits", "most_gb"), [(16, 16.33), (8, 9.55), (4, 5.94)])
def test_a_frame_reads_no_more_bytes_than_it_did(bits: int, most_gb: float) -> None:
    """The 7B's own size, never evaluated: every weight that a step uses once, and a full window of keys and values."""
    lm = blank_lm(SEVEN, quantization=quantization(str(bits), SEVEN), unpack=False)
    lm.set_dtype(mx.bfloat16)
    found = of_step(lm, [SEVEN.context]).n_bytes / 1e9
    assert 0.99 * most_gb < found <= most_gb
    rings = of_step(lm, [SEVEN.context]).n_bytes - of_step(lm, [0]).n_bytes
    assert rings == SEVEN.context * 2 * 2 * SEVEN.dim * SEVEN.num_layers
