"""The emulator (or the card in its place): sums over warps and blocks, barriers between blocks, writing in place."""

from __future__ import annotations

import mlx.core as mx
import pytest

from personaplex.cuda import kernel as kernels
from personaplex.cuda.kernel import Kernel
from personaplex.errors import UsageError
from tests.cuda.emulator import emulate


def kernel(function: str, inputs: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    own = kernels.source
    monkeypatch.setattr(kernels, "source", lambda name: text if name == "own.cuh" else own(name))
    return Kernel("own", function, inputs, ("out",), ("warp.cuh", "own.cuh"))


def test_a_block_sums_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    template <typename T> __device__ void total(const T* x, float* out) {
      SHARED(float, scratch, 32);
      float sum = block_sum(number(x[blockIdx.x * blockDim.x + threadIdx.x]), scratch);
      if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
    """
    x = mx.arange(3 * 96).astype(mx.bfloat16).reshape(3, 96)
    of = kernel("total<T>", ("x",), text, monkeypatch)
    (out,) = emulate(of, [x], [((3,), mx.float32)], 3, 96, {"T": mx.bfloat16})
    assert out.tolist() == x.astype(mx.float32).sum(axis=1).tolist()


def test_blocks_wait_for_each_other_and_write_what_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    __device__ void meet(const int32_t* mine, const int32_t* counter, int32_t* out) {
      int32_t* shared_counter = const_cast<int32_t*>(counter);
      if (threadIdx.x == 0) {
        const_cast<int32_t*>(mine)[blockIdx.x] *= 10;
        __threadfence();
        atomicAdd(shared_counter, 1);
        while (*(volatile int32_t*)shared_counter < int32_t(gridDim.x)) __nanosleep(20);
        out[blockIdx.x] = __ldcg(mine + (blockIdx.x + 1) % gridDim.x);
      }
      __syncthreads();
    }
    """
    mine, counter = mx.array([1, 2, 3], mx.int32), mx.zeros((1,), mx.int32)
    mx.eval(mine, counter)
    of = kernel("meet", ("mine", "counter"), text, monkeypatch)
    (out,) = emulate(of, [mine, counter], [((3,), mx.int32)], 3, 32, {})
    assert mine.tolist() == [10, 20, 30]
    assert out.tolist() == [20, 30, 10]
    assert counter.item() == 3


def test_what_kernels_are_asked_for_is_understood_or_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "on_card", lambda: True)
    for wish, expected in (
        ("stock", (False, False)),
        ("auto", (True, True)),
        ("auto,no-stack", (True, False)),
        ("no-stack", (True, False)),
    ):
        monkeypatch.setenv("PERSONAPLEX_KERNELS", wish)
        assert (kernels.enabled(), kernels.enabled("stack")) == expected, wish
    monkeypatch.delenv("PERSONAPLEX_KERNELS")
    assert kernels.enabled() and kernels.enabled("stack"), "nobody has to ask"
    monkeypatch.setattr(kernels, "on_card", lambda: False)
    assert not kernels.enabled(), "there is nothing to compute with"
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto,no-stacks")
    with pytest.raises(UsageError, match="'no-stacks' means nothing"):
        kernels.enabled()
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto,stock")
    with pytest.raises(UsageError, match="stock leaves nothing to the rest"):
        kernels.enabled()
