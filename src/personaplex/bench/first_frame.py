"""One start of the program, timed: run by `bench startup` in a process of its own, whose last line is JSON."""

from __future__ import annotations

import json
import sys
import time


def main(name: str, bits: int, compiled: bool | None, began: float) -> dict[str, float]:
    """Milliseconds of each stage since `began`, on the machine's monotonic clock."""
    times: dict[str, float] = {}
    last = began

    def done(stage: str) -> None:
        nonlocal last
        now = time.monotonic()
        times[stage], last = 1000 * (now - last), now

    import numpy as np

    import personaplex.model  # noqa: F401

    done("import")
    from personaplex.bench.prefill import COLUMNS, prompt_of
    from personaplex.bench.weights import open_model
    from personaplex.engine.sampling import Sampling
    from personaplex.runtime.device import Device
    from personaplex.runtime.limits import Limits
    from personaplex.units import FRAME_SAMPLES

    model = open_model(name, bits or None, compiled)
    done("load")
    device = Device(model, 1, Limits())
    prompt = prompt_of(model, min(COLUMNS, model.lm.config.context), 0)
    device.begin(0, [None, *device.reading(prompt)][-1], 0, Sampling())
    done("prompt")
    for stage in ("first frame", "second frame"):
        device.step({0: np.zeros(FRAME_SAMPLES, np.float32)}, {}, [Sampling()])
        done(stage)
    return times | {"total": sum(times.values()) - times["second frame"]}


if __name__ == "__main__":
    _, name, bits, compiled, began = sys.argv
    sys.stdout.write(json.dumps(main(name, int(bits), json.loads(compiled), float(began))) + "\n")
