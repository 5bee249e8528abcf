"""Columns of tokens to vectors: the kernel's sum against that of MLX's own operations."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from personaplex.config import LMConfig
from personaplex.cuda import kernel as kernels
from personaplex.models.lm import LanguageModel
from tests.cuda.emulator import SLACK, emulate


def model(dtype: mx.Dtype, bits: int | None) -> LanguageModel:
    """A language model of which only the tables are drawn; 320 channels are no whole number of blocks."""
    lm = LanguageModel(
        LMConfig(dim=320, num_heads=5, num_layers=1, text_card=40, card=30, depformer_dim=64, depformer_num_layers=1)
    )
    for seed, table in enumerate((lm.text_emb, lm.audio_emb)):
        table.weight = mx.random.normal(table.weight.shape, key=mx.random.key(seed)).astype(dtype)
    if bits:
        lm.text_emb, lm.audio_emb = (table.to_quantized(32, bits) for table in (lm.text_emb, lm.audio_emb))
    lm.eval()
    return lm


@pytest.mark.parametrize(
    ("dtype", "bits"), [(mx.float32, None), (mx.bfloat16, None), (mx.bfloat16, 8), (mx.float32, 4)]
)
def test_a_column_is_the_sum_of_its_rows(dtype: mx.Dtype, bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model(dtype, bits)
    drawn = np.random.default_rng(1).integers(-1, 30, (2, 3, 17))
    drawn[0, 0], drawn[1, 2, 0] = -1, 40
    columns = mx.array(drawn.astype(np.int32))
    stock = lm.embed(columns)
    mx.eval(stock)
    launched = []

    def launch(*call: object) -> list[mx.array]:
        launched.append(call[0])
        return emulate(*call)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "launch", launch)
    ours = lm.embed(columns)
    assert len(launched) == 1
    assert ours.dtype == stock.dtype and ours.shape == stock.shape == (2, 3, 320)
    unit = SLACK * (2**-20 if dtype == mx.float32 else 2**-7)
    a, b = np.array(ours.astype(mx.float32)), np.array(stock.astype(mx.float32))
    assert np.abs(a - b).max() <= unit * np.abs(b).max() and np.abs(a - b).mean() <= unit / 4 * np.abs(b).mean()
    assert not a[0, 0].any() and np.abs(b).max() > 1

    lm.embed(columns.astype(mx.int64))
    lm.train()
    lm.embed(columns)
    assert len(launched) == 1, "other tokens and training keep MLX's own operations"
