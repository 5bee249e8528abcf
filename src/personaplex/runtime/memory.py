"""What a model and its slots will take, known before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx

from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import blank_lm, default_dtype
from personaplex.cuda.kernel import enabled
from personaplex.errors import BackendError
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.sinks import sinks_form
from personaplex.nn.state import n_bytes, parameters
from personaplex.nn.transformer import TransformerState
from personaplex.runtime.limits import Limits
from personaplex.units import FRAME_SAMPLES

ACTIVATIONS = 16
"""Arrays of the codec's first layer that a step holds at once (measured: 10 to 14)."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: `weights` of the language model, the `codec`'s, one slot's window and codec state, times `slots`.

    While a saved conversation is opened its state is there twice, so there is one slot more to pay for. `working` is
    what a step needs for each slot while it is computed. `prompt` are the keys of the longest prompt as they were read,
    which slots with the same prompt share: they are there for each of so many different `prompts`, None meaning the
    worst, as many as slots.
    """

    weights: int
    codec: int
    slot: int
    slots: int
    working: int = 0
    prompt: int = 0
    prompts: int | None = None

    @property
    def total(self) -> int:
        """All of it."""
        prompts = self.slots if self.prompts is None else min(self.prompts, self.slots)
        opened = (self.slots + 1) * self.slot + (prompts + 1) * self.prompt
        return self.weights + self.codec + opened + self.slots * self.working

    def most_slots(self, available: int) -> int:
        """How many slots would fit into `available`, each with a prompt of its own."""
        each = self.slot + self.prompt
        return max(0, (available - self.weights - self.codec - each) // (each + self.working))

    def check(self, available: int) -> None:
        """Raise BackendError, with the numbers, when it is more than `available`."""
        if self.total > available:
            count = "1 slot needs" if self.slots == 1 else f"{self.slots} slots need"
            each = _gib(self.slot + self.prompt)
            raise BackendError(
                f"{count} {_gib(self.total)}: weights {_gib(self.weights)}, codec {_gib(self.codec)}, "
                f"{each} for each slot and for one being opened; {_gib(available)} are available: "
                "fewer slots or context seconds make it fit"
            )


def plan(folder: ModelFolder, slots: int, limits: Limits, dtype: mx.Dtype | None = None) -> MemoryPlan:
    """The plan for a model on disk; only its config.json is read."""
    config = folder.config
    # Nothing here is evaluated: the arrays of these networks and states have shapes and no memory.
    lm, mimi = blank_lm(config.lm, quantization=config.quantization), Mimi(config.mimi)
    return plan_of(lm, mimi, slots, limits, dtype or default_dtype())


def plan_of(
    lm: LanguageModel,
    mimi: Mimi,
    slots: int,
    limits: Limits,
    dtype: mx.Dtype | None = None,
    *,
    prompts: int | None = None,
) -> MemoryPlan:
    """The plan for networks that are there, or only have shapes; `dtype` is what the weights will be (None: are).

    `prompts` is how many different ones there will be, if that is known.
    """
    dtype = dtype or lm.dtype
    extra_rows = limits.pinned_frames + limits.spare_frames
    window = lm.temporal.init_state(1, dtype=dtype, extra_rows=extra_rows, kv_bits=limits.kv_bits)
    codec_state = (mimi.init_encoder(1, limits.spare_frames), mimi.init_decoder(1, limits.spare_frames))
    return MemoryPlan(
        weights=sum(
            array.nbytes if array.dtype == mx.uint32 else array.size * dtype.size for array in parameters(lm).values()
        ),
        codec=n_bytes(parameters(mimi)),
        slot=n_bytes((window, codec_state)),
        slots=slots,
        working=_working(lm, mimi, window, limits.kv_bits),
        prompt=n_bytes(sinks_form(window.rings, limits.pinned_frames, dtype)),
        prompts=prompts,
    )


def _working(lm: LanguageModel, mimi: Mimi, window: TransformerState, kv_bits: int) -> int:
    """What a step holds for one slot at its fullest: measured for the codec's widest layers, reckoned for the rest."""
    sound = ACTIVATIONS * 4 * FRAME_SAMPLES * mimi.encoder.first.weight.shape[0]
    vocabularies = lm.config.text_card + lm.depformer.n_steps * lm.config.card
    # MLX's own operations unpack one layer's keys and values, by way of float32; our kernels read them as they are.
    unpacked = (
        sum((4 + lm.dtype.size) * rows.size for rows in window.rings[0][:2]) if kv_bits == 8 and not enabled() else 0
    )
    return sound + 8 * 4 * vocabularies + unpacked


def available_bytes() -> int | None:
    """Memory that MLX may fill now; None where the system does not say."""
    if mx.default_device().type == mx.DeviceType.gpu:
        about = mx.device_info()
        # A Mac says what it recommends, a CUDA card what is free now; MLX's own cache is given back when it is needed.
        if (free := about.get("free_memory")) is not None:
            return cast(int, free) + mx.get_cache_memory()
        found = about.get("max_recommended_working_set_size") or about.get("memory_size")
        return cast("int | None", found)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _gib(n: int) -> str:
    return f"{n / 2**30:.2f} GiB"
